"""Contract suites for tasks, trainers and runtimes of one's own: each raises AssertionError that says what is wrong."""
