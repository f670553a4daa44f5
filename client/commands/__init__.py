"""The commands of people who use a model: infer, live, status, doctor, demo."""
