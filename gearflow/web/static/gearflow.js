// The dashboard works without this module. With it, pages follow the servers, acts keep the place on the page,
// and times are shown in the visitor's time zone.

const state = document.getElementById("stream");
let source = null;
let busy = false;
let shown = location.pathname + location.search;

// ------------------------------------------------------------------------------------------ patching

const KEPT = new Set(["open"]); // what the visitor has changed, such as a question that is open

function sameKind(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName
    && (one.nodeType !== Node.ELEMENT_NODE || (one.id || "") === (other.id || "")
      && one.getAttribute("data-key") === other.getAttribute("data-key"));
}

function patchAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !KEPT.has(name)) old.setAttribute(name, value);
  }
}

// Makes the children of `old` equal to those of `fresh`, and keeps the nodes that stay, with focus and selection.
function patch(old, fresh) {
  const keyed = new Map();
  for (const child of old.children) {
    const key = child.id || child.getAttribute("data-key");
    const name = `${child.nodeName} ${key}`;
    if (key && !keyed.has(name)) keyed.set(name, child);
  }
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = wanted.nodeType === Node.ELEMENT_NODE && (wanted.id || wanted.getAttribute("data-key"));
    const name = `${wanted.nodeName} ${key}`;
    let found = key ? keyed.get(name) : null;
    keyed.delete(name); // two workers of C gearmand may look the same
    if (!found && place && sameKind(place, wanted)) found = place;
    if (!found) {
      old.insertBefore(wanted, place);
      continue;
    }
    if (found !== place) old.insertBefore(found, place);
    else place = place.nextSibling;
    if (found.nodeType !== Node.ELEMENT_NODE) {
      if (found.nodeValue !== wanted.nodeValue) found.nodeValue = wanted.nodeValue;
    } else if (!found.isEqualNode(wanted)) {
      patchAttributes(found, wanted);
      if (!found.matches("input, select, textarea")) patch(found, wanted);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function show(parts) {
  for (const [name, html] of Object.entries(parts)) {
    const element = document.getElementById(name);
    if (!element) continue;
    const template = document.createElement("template");
    template.innerHTML = html;
    localize(template.content);
    patch(element, template.content);
  }
}

// --------------------------------------------------------------------------------------------- times

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const brief = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });

function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const text = full.format(new Date(time.dateTime));
    if (time.hasAttribute("data-clock")) time.textContent = text;
    else time.title = text;
  }
  for (const label of root.querySelectorAll("[data-time]")) {
    label.textContent = brief.format(new Date(Number(label.getAttribute("data-time")) * 1000));
  }
}

// -------------------------------------------------------------------------------------------- stream

function say(text, kind) {
  state.textContent = text;
  state.className = `state ${kind}`;
}

function follow() {
  if (source || document.hidden || !document.body.dataset.events) return;
  source = new EventSource(document.body.dataset.events);
  source.addEventListener("parts", (event) => {
    say("Live", "live");
    if (!busy) show(JSON.parse(event.data));
  });
  source.addEventListener("fault", (event) => say(JSON.parse(event.data), "lost"));
  source.addEventListener("gone", () => {
    stop();
    say("Stopped. Reload the page.", "lost");
  });
  source.onerror = () => {
    say("No connection. Trying again…", "lost");
    if (source && source.readyState === EventSource.CLOSED) {
      stop();
      setTimeout(follow, 5000);
    }
  };
}

function stop() {
  if (source) source.close();
  source = null;
}

document.addEventListener("visibilitychange", () => (document.hidden ? stop() : follow()));
window.addEventListener("pagehide", stop);
window.addEventListener("pageshow", follow);

// ---------------------------------------------------------------------------------------------- acts

// Stays until the next act, while the state of the stream changes.
function warn(text) {
  document.getElementById("warning")?.remove();
  const notice = document.createElement("p");
  notice.id = "warning";
  notice.className = "notice bad";
  notice.setAttribute("role", "alert");
  notice.textContent = text;
  main().prepend(notice);
  notice.scrollIntoView({ block: "nearest" });
}

// Sends a form and shows the page that answers it, in place.
async function send(form, submitter) {
  busy = true;
  form.setAttribute("aria-busy", "true");
  try {
    const body = new URLSearchParams(new FormData(form, submitter));
    const answer = await fetch(form.action, { method: "POST", body, credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    if (!("page" in page.body.dataset)) { // an error, or the page for the access token
      warn(page.querySelector(".reason")?.textContent ?? page.title);
      return;
    }
    if (answer.redirected && answer.url !== location.href) history.pushState(null, "", answer.url);
    shown = location.pathname + location.search;
    document.title = page.title;
    localize(fresh);
    main().replaceWith(document.adoptNode(fresh));
    if (document.body.dataset.events !== page.body.dataset.events) {
      if (page.body.dataset.events) document.body.dataset.events = page.body.dataset.events;
      else delete document.body.dataset.events;
      say(page.getElementById("stream").textContent, "");
    }
    main().focus({ preventScroll: true });
    document.getElementById("notice")?.scrollIntoView({ block: "nearest" });
  } catch {
    warn("No connection. It is not known whether this was done. Look before you try again.");
  } finally {
    form.removeAttribute("aria-busy");
    busy = false;
    stop(); // parts that came meanwhile were not shown, and a new stream begins with all of them
    follow();
  }
}

function main() {
  return document.getElementById("main");
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.action.endsWith("/logout")) return;
  event.preventDefault();
  if (!busy) send(form, event.submitter);
});

window.addEventListener("popstate", () => { // also comes when a link leads to a part of the same page
  if (location.pathname + location.search !== shown) location.reload();
});

// ------------------------------------------------------------------------------------------ keyboard

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    for (const open of document.querySelectorAll("details.ask[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  }
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    const filter = document.querySelector("input[type=search]");
    if (filter) {
      event.preventDefault();
      filter.focus();
    }
  }
});

localize(document);
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // of a narrow screen
if (document.body.dataset.events) say("Connecting…", "");
follow();
