// Before every view's own script, in one module with it: theme.py joins the two.

// The notebook's own theme, not the system's: JupyterLab, Colab, VS Code, else the background.
export function theme(doc, style) {
  const lab = doc.body.getAttribute("data-jp-theme-light");
  if (lab !== null) return lab === "false" ? "dark" : "light";
  if (doc.documentElement.classList.contains("dark") || doc.body.classList.contains("dark")) return "dark";
  const code = style(doc.documentElement).getPropertyValue("--vscode-editor-background");
  const found = luminance(code) ?? luminance(style(doc.body).backgroundColor);
  return found !== null && found < 0.4 ? "dark" : "light";
}

export function luminance(colour) {
  const hex = /^\s*#([0-9a-f]{6})\s*$/i.exec(colour ?? "");
  const rgb = /^\s*rgba?\((\d+)[, ]+(\d+)[, ]+(\d+)(?:[,/ ]+([\d.]+))?\)/i.exec(colour ?? "");
  if (rgb && rgb[4] !== undefined && Number(rgb[4]) === 0) return null;
  const parts = hex
    ? [0, 2, 4].map((i) => parseInt(hex[1].slice(i, i + 2), 16))
    : rgb ? rgb.slice(1, 4).map(Number) : null;
  if (!parts) return null;
  const [r, g, b] = parts.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Keeps the theme in root.dataset.theme, now and when the notebook's changes; the way to stop.
export function followTheme(root) {
  const doc = root.ownerDocument;
  const view = doc.defaultView;
  const paint = () => (root.dataset.theme = theme(doc, (node) => view.getComputedStyle(node)));
  paint();
  const watcher = new view.MutationObserver(paint);
  for (const node of [doc.body, doc.documentElement]) watcher.observe(node, { attributes: true });
  return () => watcher.disconnect();
}
