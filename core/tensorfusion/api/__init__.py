"""Wire types: the one data model. CRDs, validation, reference tables and decoders derive from it."""
