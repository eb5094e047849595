"""The demo's rows and prompts: data, and what is asked of it. No heavy imports."""
