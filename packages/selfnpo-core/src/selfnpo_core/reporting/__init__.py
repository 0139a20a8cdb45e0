"""`report`: one page, and Markdown, of what was measured: figures and pairs of sample folders, or a training run."""

from selfnpo_core.system.extras import need

need("report", "jinja2", "matplotlib")
