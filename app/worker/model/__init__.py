"""Models and the device that they are on: loaded, warmed up, called on one thread."""
