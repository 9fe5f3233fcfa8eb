"""Tasks that run by the clock: ``gearflow cron apply myapp.reports`` in the directory ``examples``."""

from gearflow import Context, Cron, Every, task


@task(schedule=Cron("30 2 * * *", tz="Europe/Berlin"))
def nightly(ctx: Context) -> str:
    """Something for each night, whose date does not change if the run is late."""
    return f"the report for {ctx.scheduled_at:%d %B}"


@task(schedule=[Every(minutes=5), Every(hours=1, args={"full": True})])
def clean(full: bool = False) -> str:
    """Something that is done often, and thoroughly now and then."""
    return "everything is clean" if full else "clean enough"
