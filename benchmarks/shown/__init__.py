"""The tables of README and docs: what each shows, by name in the file beside this folder."""
