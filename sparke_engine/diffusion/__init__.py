"""The seam to stock diffusers: schedulers' algebra, guided steps, pipelines behind one protocol."""
