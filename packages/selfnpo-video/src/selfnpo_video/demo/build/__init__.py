"""How the shipped video demo's parts are made, stage by stage; used by `tools/build_demo_models.py video` only."""
