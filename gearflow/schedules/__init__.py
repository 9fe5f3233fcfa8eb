"""When schedules are due: cron expressions and intervals. Pure."""
