"""The papers' runs, and those of small data, as functions that return a configuration; `catalogue` names them."""
