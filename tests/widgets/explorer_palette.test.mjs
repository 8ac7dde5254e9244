// The Explorer's colours, measured: order for any colour vision, contrast of texts and lines.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { module } from "./page.mjs";

const { view } = await module("explorer");
const THEMES = { light: "#ffffff", dark: "#15191e" };

const linear = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
// Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
const EYES = {
  "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protanopia: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
  deuteranopia: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
  tritanopia: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
  "no colour": [[0.2126, 0.7152, 0.0722], [0.2126, 0.7152, 0.0722], [0.2126, 0.7152, 0.0722]],
};
const seen = (hex, eye) => EYES[eye].map((row) => Math.min(1, Math.max(0, row.reduce((sum, v, i) => sum + v * linear(hex)[i], 0))));
function lab([r, g, b]) { // CIE L*a*b*, D65
  const f = (t) => (t > 216 / 24389 ? Math.cbrt(t) : (24389 / 27 * t + 16) / 116);
  const [x, y, z] = [[0.4124, 0.3576, 0.1805, 0.95047], [0.2126, 0.7152, 0.0722, 1], [0.0193, 0.1192, 0.9505, 1.08883]]
    .map(([p, q, s, white]) => f((p * r + q * g + s * b) / white));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}
const distance = (a, b, eye) => Math.hypot(...lab(seen(a, eye)).map((v, i) => v - lab(seen(b, eye))[i]));
const contrast = (a, b) => {
  const [x, y] = [view.luminance(a), view.luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const hex = (rgb) => `#${rgb.map((v) => v.toString(16).padStart(2, "0")).join("")}`;

test("every ramp grows in lightness for every eye, in steps that can be told apart", () => {
  for (const theme of Object.keys(THEMES)) {
    for (const name of Object.keys(view.RAMPS)) {
      const anchors = view.ramp(name, theme);
      const steps = Array.from({ length: 9 }, (_, i) => hex(view.mix(anchors, i / 8)));
      for (const eye of Object.keys(EYES)) {
        const light = steps.map((each) => lab(seen(each, eye))[0]);
        const sign = Math.sign(light[8] - light[0]);
        assert.ok(Math.abs(light[8] - light[0]) >= 60, `${name} ${theme} ${eye} spans ${light[8] - light[0]}`);
        for (let i = 1; i < 9; i++) {
          assert.ok(sign * (light[i] - light[i - 1]) > 2, `${name} ${theme} ${eye} step ${i}: ${light}`);
          assert.ok(distance(steps[i], steps[i - 1], eye) >= 4, `${name} ${theme} ${eye} step ${i}`);
        }
      }
    }
  }
});

test("below and above zero differ for every eye with cones, and both from zero for all", () => {
  for (const theme of Object.keys(THEMES)) {
    const [low, lower, zero, higher, high] = view.DIVERGING[theme];
    for (const eye of Object.keys(EYES)) {
      for (const [near, far] of [[lower, low], [higher, high]]) {
        assert.ok(distance(near, zero, eye) >= 20, `${theme} ${eye} near`);
        assert.ok(distance(far, zero, eye) > distance(near, zero, eye) + 10, `${theme} ${eye} far`);
      }
      if (eye !== "no colour") { // who sees no colour reads the sign: it is printed
        assert.ok(distance(low, high, eye) >= 30, `${theme} ${eye} ends ${distance(low, high, eye)}`);
        assert.ok(distance(lower, higher, eye) >= 30, `${theme} ${eye} halves`);
      }
    }
  }
});

test("lines differ in dash and mark, and each is seen on its page", () => {
  assert.equal(new Set(view.LINES.map((each) => each.dash)).size, view.LINES.length);
  assert.equal(new Set(view.LINES.map((each) => each.mark)).size, view.LINES.length);
  for (const [theme, page] of Object.entries(THEMES)) {
    for (const each of view.LINES) assert.ok(contrast(each[theme], page) >= 4.5, `${theme} ${each[theme]}`);
    view.LINES.slice(0, 3).forEach((one, i, all) => all.slice(0, i).forEach((other) => {
      for (const eye of Object.keys(EYES).slice(0, 4)) assert.ok(distance(one[theme], other[theme], eye) >= 12, `${theme} ${eye} ${one[theme]} ${other[theme]}: ${distance(one[theme], other[theme], eye)}`);
    }));
  }
});

test("a number on any cell of any ramp can be read", () => {
  for (const theme of Object.keys(THEMES)) {
    for (const anchors of [...Object.keys(view.RAMPS).map((name) => view.ramp(name, theme)), view.DIVERGING[theme]]) {
      for (let q = 0; q < 256; q++) {
        const rgb = view.mix(anchors, q / 255);
        assert.ok(contrast(hex(rgb), view.inkOn(rgb)) >= 4.5, `${theme} ${q} ${hex(rgb)}`);
      }
    }
  }
});

test("the style sheet's texts and marks have the contrast that WCAG asks", () => {
  const css = ["theme", "explorer"].map((name) => readFileSync(new URL(`../../gptj_lab/widgets/${name}.css`, import.meta.url), "utf8")).join("\n");
  for (const theme of Object.keys(THEMES)) {
    const value = (name) => {
      const all = [...css.matchAll(/\.gptj-(?:view|explorer)(\[data-theme="dark"\])? \{([^}]*)\}/g)]
        .filter(([, dark]) => !dark || theme === "dark").map(([, , body]) => new RegExp(`--${name}: (#[0-9a-f]{6})`).exec(body)?.[1]).filter(Boolean);
      return all.at(-1);
    };
    for (const back of ["back", "tint"]) {
      for (const text of ["ink", "soft", "accent", "warn"]) {
        assert.ok(contrast(value(text), value(back)) >= 4.5, `${theme} ${text} on ${back}`);
      }
    }
    assert.ok(contrast(value("on-accent"), value("accent")) >= 4.5);
    assert.ok(contrast(value("mark"), value("back")) >= 3, `${theme} mark`);
    assert.ok(contrast(value("mark"), value("rim")) >= 3, `${theme} mark on its rim`);
  }
});

test("a table of colours holds them as pixels, and gamma lifts or sinks what is small", () => {
  const table = view.lut(["#000000", "#ffffff"]);
  assert.deepEqual([0, 128, 255].map((q) => view.parts(table[q])), [[0, 0, 0], [128, 128, 128], [255, 255, 255]]);
  assert.ok(view.parts(view.lut(["#000000", "#ffffff"], 0.5)[64])[0] > 120);
  assert.deepEqual(view.parts(view.pixel("#0a0b0c")), [10, 11, 12]);
});
