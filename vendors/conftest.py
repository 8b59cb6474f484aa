"""The template is no distribution of this workspace: a contract test builds and tests it apart."""

collect_ignore = ["_template"]
