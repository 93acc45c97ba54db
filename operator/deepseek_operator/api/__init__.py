"""The custom resource: models, and the definition generated from them."""
