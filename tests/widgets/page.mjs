// A page that is not there: just enough of a document for a view, and the view's own module.
import { readFileSync } from "node:fs";

// What theme.py joins.
export async function module(name) {
  const read = (file) => readFileSync(new URL(`../../gptj_lab/widgets/${file}.js`, import.meta.url), "utf8");
  const source = `${read("theme")}\n${read(name)}`;
  const view = await import("data:text/javascript;base64," + Buffer.from(source).toString("base64"));
  return { source, view };
}

export class Node {
  constructor(tag, doc) {
    Object.assign(this, { tagName: tag.toUpperCase(), ownerDocument: doc, children: [], attributes: {},
      listeners: {}, style: {}, dataset: {}, hidden: false, disabled: false, text: "", className: "" });
    this.classList = {
      add: (name) => (this.className += ` ${name}`),
      contains: (name) => this.className.split(" ").includes(name),
    };
  }
  set textContent(value) { this.text = String(value); this.children = []; }
  get textContent() { return this.text + this.children.map((c) => c.textContent).join(""); }
  set innerHTML(_) { throw new Error("innerHTML is never used"); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  getAttribute(name) { return this.attributes[name] ?? null; }
  removeAttribute(name) { delete this.attributes[name]; }
  append(...nodes) { this.children.push(...nodes); nodes.forEach((n) => (n.parent = this)); }
  prepend(...nodes) { this.children.unshift(...nodes); nodes.forEach((n) => (n.parent = this)); }
  replaceChildren(...nodes) { this.text = ""; this.children = []; this.append(...nodes); }
  get parentNode() { return this.parent; }
  addEventListener(name, f) { (this.listeners[name] ??= []).push(f); }
  fire(name, event = {}) {
    const full = { target: this, preventDefault() {}, stopPropagation() {}, ...event };
    for (let node = this; node; node = node.parent) (node.listeners[name] ?? []).forEach((f) => f(full));
  }
  focus() { this.ownerDocument.active = this; this.fire("focusin"); }
  all(name) {
    return this.children.flatMap((c) => [...(c.classList.contains(name) ? [c] : []), ...c.all(name)]);
  }
  get(name) { return this.all(name)[0]; }
}

export function page() {
  const doc = {};
  doc.createElement = (tag) => new Node(tag, doc);
  doc.body = new Node("body", doc);
  doc.documentElement = new Node("html", doc);
  doc.defaultView = {
    getComputedStyle: () => ({ getPropertyValue: () => "", backgroundColor: "rgb(255, 255, 255)" }),
    MutationObserver: class { observe() {} disconnect() { doc.disconnected = true; } },
  };
  return doc;
}
