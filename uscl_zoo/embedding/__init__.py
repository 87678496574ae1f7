"""Images to vectors, and what is done with them: kept, searched, drawn as a map."""
