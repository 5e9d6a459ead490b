"""The search: an Optuna study over merge schedules, answered by a supernet with shared weights."""
