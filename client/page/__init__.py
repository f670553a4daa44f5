"""A page in the browser: in come results and their videos, out come faces and curves that move together.

Read library, result_data, media, task_queue, security, serving; the browser's part is in static/, main.js first.
"""
