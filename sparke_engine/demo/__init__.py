"""The small text-to-image model that ships: its world, its renderer, its training, its weights, its judge."""
