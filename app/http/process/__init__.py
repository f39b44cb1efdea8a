"""The API as a process: its main, its socket, what it opens, and what it does beside answering."""
