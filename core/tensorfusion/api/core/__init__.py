"""The kinds of Kubernetes that the embedded mode serves, field by field as upstream has them."""
