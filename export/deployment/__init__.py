"""What `affserve serve` would be told in, files for container engines and clusters out.

Read container, compose, pod, kubernetes, kserve, dashboard.
"""
