"""Programs that measure one thing in a process of their own: `python -m … TASK_JSON ANSWER_FILE`."""
