"""Images: where their bytes lie, and the signed URLs that show them."""
