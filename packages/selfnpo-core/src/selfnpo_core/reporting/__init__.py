"""`report`: one page, and Markdown, of what was measured: figures and pairs of sample folders, or a training run."""
