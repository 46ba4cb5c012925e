"""A checkpoint's own head answers over the data's classes, in their order, or is refused."""
