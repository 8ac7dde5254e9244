// A page that is not there: just enough of a document for a view, and the view's own module.
import { readFileSync, readdirSync } from "node:fs";

// What theme.py joins; the packed module that it makes, if GPTJ_LAB_PACKED names its folder.
export async function module(name) {
  const folder = new URL("../../gptj_lab/widgets/", import.meta.url);
  const parts = readdirSync(folder).filter((file) => file.startsWith(`${name}_`) && file.endsWith(".js")).sort();
  const packed = process.env.GPTJ_LAB_PACKED;
  const files = ["theme.js", ...(["explorer", "tuneboard"].includes(name) ? ["parts.js"] : []), ...parts, `${name}.js`];
  const whole = files.map((file) => readFileSync(new URL(file, folder), "utf8")).join("\n");
  const exported = [...whole.matchAll(/^export (?:function|const) (\w+)/gm)].map((found) => found[1]); // packing drops these words
  const source = packed ? `${readFileSync(`${packed}/${name}.js`, "utf8")}\nexport { ${exported.join(", ")} };` : whole;
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
    if (tag === "canvas") this.drawn = [];
  }
  set textContent(value) { this.text = String(value); this.children = []; }
  get textContent() { return this.text + this.children.map((c) => c.textContent).join(""); }
  set innerHTML(_) { throw new Error("innerHTML is never used"); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  getAttribute(name) { return this.attributes[name] ?? null; }
  removeAttribute(name) { delete this.attributes[name]; }
  append(...all) {
    const nodes = all.map((each) => (typeof each === "object" ? each : Object.assign(new Node("#text", this.ownerDocument), { text: String(each) })));
    this.children.push(...nodes);
    nodes.forEach((n) => (n.parent = this));
  }
  prepend(...nodes) { this.children.unshift(...nodes); nodes.forEach((n) => (n.parent = this)); }
  replaceChildren(...nodes) { this.text = ""; this.children = []; this.append(...nodes); }
  get parentNode() { return this.parent; }
  contains(node) { return node === this || (Boolean(node) && this.contains(node.parent)); }
  addEventListener(name, f) { (this.listeners[name] ??= []).push(f); }
  fire(name, event = {}) {
    let stopped = false;
    const full = { type: name, target: this, preventDefault() {}, stopPropagation() { stopped = true; }, ...event };
    for (let node = this; node && !stopped; node = node.parent) (node.listeners[name] ?? []).forEach((f) => f(full));
  }
  focus() { this.ownerDocument.active = this; this.fire("focusin"); }
  getBoundingClientRect() { return { left: 0, top: 0 }; }
  getContext() { // notes the texts that are written and the last picture that is put
    return {
      scale() {}, save() {}, restore() {}, translate() {}, rotate() {}, fillRect() {}, strokeRect() {}, drawImage() {},
      createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }),
      measureText: (text) => ({ width: 7 * text.length }),
      fillText: (text) => this.drawn.push(text),
      putImageData: (image) => (this.image = image),
    };
  }
  all(name) {
    return this.children.flatMap((c) => [...(c.classList.contains(name) ? [c] : []), ...c.all(name)]);
  }
  get(name) { return this.all(name)[0]; }
}

export function page() {
  const doc = {};
  doc.createElement = (tag) => new Node(tag, doc);
  doc.createElementNS = (_, tag) => new Node(tag, doc);
  doc.body = new Node("body", doc);
  doc.documentElement = new Node("html", doc);
  doc.defaultView = {
    getComputedStyle: () => ({ getPropertyValue: () => "", backgroundColor: "rgb(255, 255, 255)" }),
    MutationObserver: class { observe() {} disconnect() { doc.disconnected = true; } },
  };
  return doc;
}
