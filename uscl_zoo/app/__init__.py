"""A page to drop a clip into: what a network sees in it, and what it says of it.

`examination` and `uscl_zoo.embedding.neighbours` have the work, `panels` what is shown, `page` the
Gradio around it, `space` the same for the Hugging Face Hub.
"""
