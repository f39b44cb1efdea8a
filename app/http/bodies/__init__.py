"""What is taken and answered as JSON: bodies as they are read and become requests, answers as they are shown."""
