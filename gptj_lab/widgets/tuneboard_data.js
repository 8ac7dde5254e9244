// The text: dropped, pasted or named by its path, and what becomes of it.

export function dataPane(x) {
  const { make, about } = x;
  const node = make("div", "gt-pane");
  const path = make("input", "", { type: "text", size: 42, autocomplete: "off", spellcheck: false, "aria-label": "Path of a file or folder, or a data set of the hub" });
  path.placeholder = "my_text.txt, a folder, or owner/dataset";
  const go = () => path.value.trim() && x.ask({ op: "read", path: path.value }, "f", x.arrive, "read");
  const read = make.button("Read", "Enter in the path", go);
  path.addEventListener("keydown", (event) => event.key === "Enter" && go());
  const file = make("input", "gt-file", { type: "file", "aria-label": "Choose a file" });
  const drop = make("div", "gt-drop", { role: "group", "aria-label": "Your text" },
    make("p", "", make("strong", "", "Drop a text file here"), `, paste a text, or choose: `, file, make("span", "gx-hint", `.txt .md .jsonl .json .csv .parquet .pdf .docx .epub .html, chats, .zip, up to ${size(about.upload_bytes)}`)),
    make("div", "gt-row", make.caption("or its path"), path, read));
  const status = make("p", "gt-reading", { role: "status" });
  const body = make("div", "gt-two");
  const stretch = make("div", "gt-stretches");
  node.append(drop, status, body);

  file.addEventListener("change", () => file.files?.[0] && send(file.files[0], file.files[0].name));
  for (const [name, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => {
      taken(event);
      drop.dataset.over = String(over);
      const dropped = name === "drop" && event.dataTransfer;
      if (!dropped) return;
      if (dropped.files?.length) send(dropped.files[0], dropped.files[0].name);
      else paste(dropped.getData("text/plain"));
    });
  }
  drop.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (event.target === path && !text.includes("\n")) return;
    taken(event);
    paste(text);
  });
  const paste = (text) => text.trim() && send(new Blob([text]), "pasted.txt");

  // One part at a time: large messages end a connection.
  async function send(blob, name) {
    if (blob.size > about.upload_bytes) return void x.alarm(`${name} is larger than ${size(about.upload_bytes)}: put it beside the notebook and give its path.`);
    const bytes = await blob.arrayBuffer();
    const parts = max(1, ceil(bytes.byteLength / about.part_bytes));
    const next = (part) => {
      status.textContent = `sending ${name}: ${round(100 * part / parts)} %`;
      x.ask({ op: "upload", name, size: bytes.byteLength, part, parts, buffers: [bytes.slice(part * about.part_bytes, (part + 1) * about.part_bytes)] }, "f", (answer) => {
        if (answer.done) x.poll();
        else next(answer.next);
      }, "upload");
    };
    next(0);
  }

  function busy(on, error) {
    status.textContent = on ? "reading and tokenising…" : error;
    status.className = `gt-reading${error && !on ? " gptj-alert" : ""}`;
  }
  function show(told) {
    if (!told.sentences.length) return void body.replaceChildren();
    const facts = [["documents", count(told.documents)], ["tokens", count(told.tokens)], ["bytes", size(told.bytes)], ["windows", `${count(told.train_windows)} of ${count(told.context)} tokens`],
      ["held out", `${count(told.held_out_windows)} windows`], ["padding", share(told.padding)], ["copies", count(told.copies)], ["near copies", count(told.near_copies)], ["leak", share(told.overlap)]];
    body.replaceChildren(
      make("div", "gt-pane", make("h3", "", told.name), make("dl", "gt-facts", ...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)])),
        make("ul", "gt-sentences", ...told.sentences.map((each) => make("li", each.startsWith("LEAK") ? "gt-warning" : "", each)))),
      make("div", "gt-pane", make("h3", "", "Documents by length, in tokens"), lengths(told), make("h3", "", "The first windows"), make("p", "gx-hint", "A cell is a document's part, a window's rest is padding. Choose one to read it."), windows(told), stretch));
    stretch.replaceChildren();
    x.tell(told.sentences[0] ?? "");
  }
  const share = (part) => `${digits(100 * part, 2)} %`;
  function lengths({ edges, counts }) {
    const most = max(...counts, 1);
    const from = counts.findIndex((each) => each);
    const to = counts.findLastIndex((each) => each);
    const rows = counts.slice(from, to + 1).map((each, i) => {
      const [least, limit] = [from + i ? edges[from + i - 1] + 1 : 0, edges[from + i]];
      const fill = make("span", "gt-fill");
      fill.style.width = `${100 * each / most}%`;
      return make("li", "gt-bar", make("span", "gt-name", least === limit ? count(limit) : `${count(least)}–${count(limit)}`), make("span", "gt-track", fill), make("span", "gt-number", count(each)));
    });
    return make("ul", "gt-bars", ...rows);
  }
  function windows({ windows: all, context }) {
    return make("ol", "gt-windows", ...all.map((sizes, i) => {
      const strip = make.button("", "", () => x.ask({ op: "window", number: i }, "f", reading), "gt-window");
      strip.setAttribute("aria-label", `window ${i}: ${sizes.length} ${sizes.length === 1 ? "part" : "parts"} of documents, ${count(sizes.reduce((a, b) => a + b, 0))} of ${count(context)} tokens`);
      strip.append(...sizes.slice(0, 200).map((each, j) => {
        const cell = make("span", `gt-cell gt-kind-${j % 2}`);
        cell.style.width = `${100 * each / context}%`;
        return cell;
      }));
      return make("li", "", strip);
    }));
  }
  function reading({ number, stretches }) {
    stretch.replaceChildren(make("h3", "", `Window ${number}`), ...stretches.map((each, j) => make("div", "gt-stretch",
      make("p", "gx-hint", make("span", `gt-key gt-kind-${j % 2}`), `${each.origin}: document ${count(each.document)}, ${count(each.predictions)} tokens from ${count(each.first)} on`),
      make("pre", "gt-text", each.text, ...(each.more ? [make("span", "gx-hint", ` … ${count(each.more)} characters more`)] : [])))));
  }
  return { node, show, busy };
}
