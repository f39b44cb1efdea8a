"""What comes as a form, part by part and bounded, and pictures: those that came, and thumbnails of those that were made."""
