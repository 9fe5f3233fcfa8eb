"""The dashboard: an ASGI application that shows servers in a browser and acts on them.

``gearflow web`` runs it. ``app`` makes it, to be mounted in any ASGI application::

    dashboard = gearflow.web.app(["10.0.0.7:4730"], allow=lambda request: "operate")
    routes = [Mount("/queue", app=dashboard)]

It is a client of the servers. It asks them only while somebody looks, and all viewers share its samples. It
renders HTML on the server and works without JavaScript. With it, a page follows the servers by server-sent
events.

**How to add a page.** Write a module in ``gearflow/web/pages`` that has a ``Section`` with the name
``section``, add the module to the list in ``gearflow/web/pages/__init__.py``, and write its template::

    section = Section("Workers", "/workers", order=50)

    @section.page("/workers", every=2)
    async def workers(visit: Visit) -> Rendered:
        return Rendered("workers.html", "Workers", {"servers": (await visit.sample()).servers})

    @section.act("/workers/{id}/quiet")
    async def quiet(visit: Visit) -> Acted:
        client = await visit.client()
        await operate.quiet(client, visit.params["id"], server=visit.server())
        return Acted("The worker gets no more jobs.", visit.url("/workers"))

The two decorators are the only way to register a handler. ``page`` needs the right to view, ``act`` the right
to operate. Both are checked before the handler is called. An act is always a POST. After it, the browser goes
to ``Acted.to`` and shows ``Acted.text`` there. A ``GearflowError`` that a handler raises becomes a page that
says what went wrong.

A template extends ``layout.html`` and fills the block ``content``. All blocks whose names begin with
``live_`` are sent again when they change, so each is the whole content of an element with the block's name as
its ``id``::

    <div id="live_table">{% block live_table %}...{% endblock %}</div>

``macros.html`` has buttons, badges, plots and empty states, and ``gearflow.web.formatting`` has the filters.
There are no inline styles and scripts, because the content security policy forbids them. All text is escaped.
Links and forms use ``visit.url("/functions", name)``, which quotes each name and adds the prefix.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gearflow.web.access import AccessTokens, Allow, Right, TrustedHeader
    from gearflow.web.dashboard import Dashboard, app

__all__ = ["AccessTokens", "Allow", "Dashboard", "Right", "TrustedHeader", "app"]


def __getattr__(name: str) -> object:
    """Import the application on first use, because it needs the extra ``web``."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from gearflow.web import access, dashboard
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gearflow"):
            raise
        raise ModuleNotFoundError(
            f"the dashboard needs {error.name}: pip install 'gearflow[web]'", name=error.name
        ) from error
    return getattr(dashboard if hasattr(dashboard, name) else access, name)
