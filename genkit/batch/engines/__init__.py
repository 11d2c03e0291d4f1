"""Who makes the jobs: the interface of an engine, the worker that holds a model, and the engines there are."""
