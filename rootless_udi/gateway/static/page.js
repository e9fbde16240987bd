"use strict";
// The live parts: the queue moves, and commands can be copied. All else is there without this file.

const list = document.getElementById("jobs");
const live = document.getElementById("live");

// Set a text only where it is another: a screen reader tells what changes.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A name that a narrow screen breaks at its parts.
function parts(name) {
  return name.split(/(?<=[/@])/).flatMap(part => [part, document.createElement("wbr")]);
}

function fill(item, job) {
  item.dataset.kind = job.kind;
  const name = item.querySelector(".name");
  if (name.textContent.trim() !== job.name || Boolean(name.querySelector("a")) !== Boolean(job.digest)) {
    const inner = document.createElement(job.digest ? "a" : "span");
    inner.append(...parts(job.name));
    if (job.digest) inner.href = `image?id=${encodeURIComponent(job.digest)}`;
    name.replaceChildren(inner);
  }
  say(item.querySelector(".state"), job.state);
  say(item.querySelector(".amount"), job.amount);
  say(item.querySelector(".by"), job.who && `for ${job.who}`);
  say(item.querySelector(".when"), job.when);
  say(item.querySelector(".message"), job.message);
  const bar = item.querySelector("progress");
  bar.hidden = job.kind !== "runs";
  bar.setAttribute("aria-label", `Progress of ${job.name}`);
  if (job.part < 0) bar.removeAttribute("value");
  else bar.value = job.part;
}

function show(found) {
  say(document.getElementById("summary"), found.summary);
  const there = new Map([...list.children].map(item => [item.dataset.number, item]));
  let before = null;
  for (const job of found.jobs) {
    const number = String(job.number);
    let item = there.get(number);
    there.delete(number);
    if (!item) {
      item = document.getElementById("job").content.firstElementChild.cloneNode(true);
      item.dataset.number = number;
    }
    fill(item, job);
    // What has its place already stays there, and keeps the keyboard's focus.
    const next = before ? before.nextElementSibling : list.firstElementChild;
    if (item !== next) list.insertBefore(item, next);
    before = item;
  }
  for (const item of there.values()) item.remove();
}

// Whether the queue is refused for good. Else the gateway, or what it needs, is away for a while.
async function refused() {
  const end = new AbortController();
  try {
    const status = (await fetch("events", {signal: end.signal})).status;
    return status >= 400 && status < 500;
  } catch {
    return false;
  } finally {
    end.abort();
  }
}

function follow() {
  const events = new EventSource("events");
  events.onopen = () => { say(live, "Live"); live.dataset.state = "live"; };
  events.onmessage = event => show(JSON.parse(event.data));
  events.onerror = async () => {
    delete live.dataset.state;
    say(live, "Connecting again…");
    // The browser does so itself after a connection that broke, not after an error's answer.
    if (events.readyState !== EventSource.CLOSED) return;
    if (await refused()) {
      const again = document.createElement("a");
      again.href = "queue";
      again.textContent = "Look again";
      live.replaceChildren("Not live any more. ", again);
    } else setTimeout(follow, 2000);
  };
}

if (list) follow();

// Browsers let a page write the clipboard only where nobody could have changed it on its way.
if (navigator.clipboard) {
  for (const block of document.querySelectorAll(".commands pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${block.getAttribute("aria-label")}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.after(button);
  }
}
