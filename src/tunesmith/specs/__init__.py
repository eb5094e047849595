"""Ground: what a user can ask for, as pydantic models. No heavy imports."""
