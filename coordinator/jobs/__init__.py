"""Jobs: heavy work in processes of their own, durable over a killed coordinator and a killed job.

`service` keeps them, `runner` starts, adopts and stops processes, `worker` is such a process.
"""
