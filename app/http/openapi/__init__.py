"""The OpenAPI document, and what of it is told beside the models of bodies."""
