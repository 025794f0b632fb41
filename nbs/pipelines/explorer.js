// The one-file explorer: what happens between the two maps, the table and the thumbnails. No library but bokeh, no network.
"use strict";
(() => {
  const $ = id => document.getElementById(id);
  const about = JSON.parse($("about").textContent), N = about.ids.length;
  const PALETTE = about.palette, KEY = "planetlab-explorer-" + about.digest;
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const columns = Object.fromEntries(Object.entries(about.columns).map(([k, c]) => [k, { values: c.values, codes: new Int32Array(bytes(c.codes).buffer) }]));
  const numbers = Object.fromEntries(Object.entries(about.numbers).map(([k, c]) => [k, { whole: c.whole, values: new (c.whole ? Float64Array : Float32Array)(bytes(c.values).buffer) }]));
  const told = (n, i) => !isFinite(n.values[i]) ? "" : String(n.whole ? n.values[i] : +n.values[i].toPrecision(7)); // a float32 has seven digits
  const z = about.z ? decoded(about.z) : null;
  const charts = about.charts.map(c => ({ ...c, xy: new Float32Array(bytes(c.xy).buffer), ring: new Float32Array(bytes(c.ring).buffer), start: new Int32Array(bytes(c.start).buffer), owner: new Int32Array(bytes(c.owner).buffer) }));
  let points, outlines, ringed, latents, place, chart = 0, by = about.by, spread = null, shown = 60, focus = -1;

  function decoded(stored) { // (N, D) standardised latents
    const q = new Int8Array(bytes(stored.q).buffer), D = stored.scale.length, x = new Float32Array(N * D);
    for (let i = 0; i < x.length; i++) x[i] = q[i] * stored.scale[i % D];
    return { x, D };
  }

  // ---- what is called what: the same steps as planetlab.labelling
  const labels = { codes: new Int32Array(N).fill(-1), names: [], done: [], undone: [] };
  const labelOf = i => labels.codes[i] < 0 ? "" : labels.names[labels.codes[i]];
  const clean = name => String(name ?? "").replace(/[\p{Z}\p{C}]+/gu, " ").trim(); // line breaks and what cannot be printed become a space
  function change(what, rows, after) {
    const kept = [];
    for (let k = 0; k < rows.length; k++) if (labels.codes[rows[k]] !== after[k]) kept.push(k);
    if (!kept.length) { table(); ready(); return say("Nothing to change."); }
    const step = { what, rows: Int32Array.from(kept, k => rows[k]), before: Int32Array.from(kept, k => labels.codes[rows[k]]), after: Int32Array.from(kept, k => after[k]) };
    step.rows.forEach((r, k) => labels.codes[r] = step.after[k]);
    labels.done.push(step);
    labels.undone = [];
    changed(what + ".", true);
  }
  function code(name) {
    if (!labels.names.includes(name)) labels.names.push(name);
    return labels.names.indexOf(name);
  }
  function nameRows(rows, name, what) {
    const after = name ? code(name) : -1;
    change(what || (name ? `${rows.length} images called “${name}”` : `${rows.length} images without a name`), rows, new Int32Array(rows.length).fill(after));
  }
  function step(from, to, which, word) {
    const last = labels[from].pop();
    if (!last) return say(`Nothing to ${word}.`);
    last.rows.forEach((r, k) => labels.codes[r] = last[which][k]);
    labels[to].push(last);
    changed(`${word === "undo" ? "Undone" : "Done again"}: ${last.what}.`, true);
  }
  function halves(rows) { // two means, begun at two far ends, as planetlab.labelling.halves
    const D = z.D, at = (i, d) => z.x[i * D + d], far = (i, c) => { let s = 0; for (let d = 0; d < D; d++) s += (at(i, d) - c[d]) ** 2; return s; };
    const mean = part => { const c = new Float64Array(D); part.forEach(i => { for (let d = 0; d < D; d++) c[d] += at(i, d); }); return c.map(v => v / part.length); };
    const ends = c => rows.reduce((a, i) => far(i, c) > far(a, c) ? i : a, rows[0]), point = i => Float64Array.from({ length: D }, (_, d) => at(i, d));
    const first = ends(mean(rows));
    let centres = [point(first), point(ends(point(first)))], parts = [], was = "";
    for (let turn = 0; turn < 50; turn++) {
      parts = [[], []];
      rows.forEach(i => parts[far(i, centres[1]) < far(i, centres[0]) ? 1 : 0].push(i));
      const is = parts[0].join();
      if (is === was || !parts[0].length || !parts[1].length) break;
      was = is;
      centres = parts.map(mean);
    }
    return parts.sort((a, b) => b.length - a.length);
  }

  // ---- a linear head: multinomial logistic regression, classes weighted evenly, as planetlab's linear probe
  function head() {
    const used = [...new Set(labels.codes)].filter(c => c >= 0).sort((a, b) => a - b), D = z.D, K = used.length;
    if (K < 2) return null;
    let rows = [];
    for (const c of used) {
      const here = rowsWhere(i => labels.codes[i] === c), step = Math.max(1, here.length / Math.max(50, 3000 / K)); // 3000 rows in all, evenly taken: some seconds
      for (let k = 0; k < here.length; k += step) rows.push([here[Math.floor(k)], used.indexOf(c)]);
    }
    const n = used.map((_, k) => rows.filter(r => r[1] === k).length), weight = n.map(v => rows.length / K / v);
    const W = new Float64Array(K * (D + 1)), V = new Float64Array(W.length), p = new Float64Array(K), l2 = 10; // C = 0.1
    const x = (i, d) => d < D ? z.x[i * D + d] : 1;
    const probs = (i, w) => {
      let top = -1e9, sum = 0;
      for (let k = 0; k < K; k++) { let s = 0; for (let d = 0; d <= D; d++) s += w[k * (D + 1) + d] * x(i, d); p[k] = s; if (s > top) top = s; }
      for (let k = 0; k < K; k++) sum += p[k] = Math.exp(p[k] - top);
      for (let k = 0; k < K; k++) p[k] /= sum;
    };
    let size = 0;
    for (const [i, k] of rows) { let s = 0; for (let d = 0; d <= D; d++) s += x(i, d) ** 2; size += weight[k] * s; }
    const rate = 1 / (size / 2 + l2);
    for (let t = 0, old = W.slice(); t < 300; t++) { // Nesterov's accelerated descent
      const G = new Float64Array(W.length);
      for (let j = 0; j < W.length; j++) V[j] = W[j] + t / (t + 3) * (W[j] - old[j]);
      for (const [i, k] of rows) {
        probs(i, V);
        for (let m = 0; m < K; m++) { const e = weight[k] * (p[m] - (m === k)); for (let d = 0; d <= D; d++) G[m * (D + 1) + d] += e * x(i, d); }
      }
      old = W.slice();
      for (let j = 0; j < W.length; j++) W[j] = V[j] - rate * (G[j] + (j % (D + 1) < D ? l2 * V[j] : 0));
    }
    const out = { codes: new Int32Array(N), p: new Float32Array(N), n: rows.length };
    for (let i = 0; i < N; i++) { probs(i, W); let b = 0; for (let k = 1; k < K; k++) if (p[k] > p[b]) b = k; out.codes[i] = used[b]; out.p[i] = p[b]; }
    return out;
  }

  // ---- selections
  function rowsWhere(test) { const rows = []; for (let i = 0; i < N; i++) if (test(i)) rows.push(i); return rows; }
  const selected = () => points.selected.indices;
  function select(rows, what) { points.selected.indices = rows; if (what) say(what); }
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    const cols = Object.values(columns).map(c => ({ codes: c.codes, values: c.values.map(v => v.toLowerCase()) })), names = labels.names.map(v => v.toLowerCase());
    const whole = Object.values(numbers).filter(n => n.whole);
    return rowsWhere(i => words.every(w => about.ids[i].toLowerCase().includes(w) || (labels.codes[i] >= 0 && names[labels.codes[i]].includes(w))
      || cols.some(c => c.codes[i] >= 0 && c.values[c.codes[i]].includes(w)) || whole.some(n => told(n, i).includes(w))));
  }
  const ASKED = 50; // images, the first that were selected
  function like(rows, n) { // nearest to any of them, of other groups where there are groups
    const D = z.D, asked = rows.slice(0, ASKED), mine = new Set(rows), groups = about.apart ? columns[about.apart].codes : null;
    const own = new Set(groups ? asked.map(i => groups[i]) : []), found = [];
    for (let i = 0; i < N; i++) {
      if (mine.has(i) || (groups && groups[i] >= 0 && own.has(groups[i]))) continue;
      let best = Infinity;
      for (const a of asked) { let s = 0; for (let d = 0; d < D && s < best; d++) s += (z.x[i * D + d] - z.x[a * D + d]) ** 2; if (s < best) best = s; }
      found.push([best, i]);
    }
    return found.sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, n).map(f => f[1]);
  }

  // ---- colours
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function colour(c) { const v = c < 0 ? css("--none") : PALETTE[c % PALETTE.length]; return v === "#000000" && dark.matches ? "#ffffff" : v; }
  const rgba = (hex, alpha) => ((parseInt(hex.slice(1), 16) << 8) | alpha) >>> 0;
  function groupsOf() { return by === "label" ? { codes: labels.codes, values: labels.names } : columns[by]; }
  function paint() {
    const out = points.data.colour, g = groupsOf(), ink = new Map();
    const of = (c, a) => { const k = c * 256 + a; if (!ink.has(k)) ink.set(k, rgba(colour(c), a)); return ink.get(k); };
    const least = +$("least").value;
    for (let i = 0; i < N; i++) {
      const c = g.codes[i], told = by === "label" && c < 0 && spread;
      out[i] = told ? of(spread.codes[i], spread.p[i] >= least ? 150 : 40) : of(c, c < 0 ? 110 : 217);
    }
    points.change.emit();
  }
  function theme() {
    const paper = css("--paper"), quiet = css("--quiet"), faint = css("--faint");
    for (const f of [latents, place].filter(Boolean)) f.setv({ background_fill_color: paper, border_fill_color: paper, outline_line_color: null });
    for (const m of Bokeh.documents[0].all_models) {
      if (m.name === "graticule") m.line_color = { value: faint };
      if (m.name === "graticule-names") m.text_color = { value: quiet };
      if (m.name === "ring") m.line_color = { value: css("--ink") };
      if (m.name === "dot" && N <= 20000) m.line_color = { value: css("--quiet") };
    }
    paint();
  }

  // ---- maps
  function fit(figure, plot, box) {
    const w = Math.max(plot.clientWidth - 40, 50), h = Math.max(plot.clientHeight - 10, 50);
    let [x0, y0, x1, y1] = box, sx = (x1 - x0) * 1.06 || 1, sy = (y1 - y0) * 1.06 || 1;
    if (figure === place) { const s = Math.max(sx / w, sy / h); sx = s * w; sy = s * h; }
    figure.x_range.setv({ start: (x0 + x1 - sx) / 2, end: (x0 + x1 + sx) / 2 });
    figure.y_range.setv({ start: (y0 + y1 - sy) / 2, end: (y0 + y1 + sy) / 2 });
  }
  function fitAll() { fit(latents, $("latent-map"), about.box); if (place) fit(place, $("body-map"), charts[chart].box); }
  function showChart() {
    const c = charts[chart], pairs = c.lines, doc = Bokeh.documents[0];
    for (let i = 0; i < N; i++) { points.data.mx[i] = c.xy[2 * i]; points.data.my[i] = c.xy[2 * i + 1]; }
    points.change.emit();
    doc.get_model_by_name("graticule-source").data = { xs: pairs.map(p => p[0]), ys: pairs.map(p => p[1]) };
    doc.get_model_by_name("names-source").data = { x: c.names.map(v => v[0]), y: c.names.map(v => v[1]), text: c.names.map(v => v[2]) };
    $("place-said").textContent = c.said;
    fit(place, $("body-map"), c.box);
    outline();
  }
  function outline() {
    if (!place) return;
    const c = charts[chart], wanted = new Set(focus >= 0 ? [focus, ...selected().slice(0, 300)] : selected().slice(0, 300)), xs = [], ys = [], line = [], g = groupsOf();
    for (let r = 0; r < c.owner.length; r++) {
      if (!wanted.has(c.owner[r])) continue;
      const x = [], y = [];
      for (let k = c.start[r]; k < c.start[r + 1]; k++) { x.push(c.ring[2 * k]); y.push(c.ring[2 * k + 1]); }
      xs.push(x); ys.push(y); line.push(colour(g.codes[c.owner[r]]));
    }
    outlines.data = { xs, ys, line };
  }
  function ring(i) {
    focus = i;
    ringed.data = i < 0 ? { x: [], y: [], mx: [], my: [] } : { x: [points.data.x[i]], y: [points.data.y[i]], mx: [points.data.mx[i]], my: [points.data.my[i]] };
    outline();
  }

  // ---- thumbnails
  const pages = new Map();
  function page(k) {
    if (!pages.has(k)) pages.set(k, URL.createObjectURL(new Blob([bytes($("page-" + k).textContent)], { type: about.thumbs.type })));
    return pages.get(k);
  }
  function picture(e, i, scale) {
    const t = about.thumbs, k = Math.floor(i / t.per), j = i % t.per, row = Math.floor(j / t.cols), col = j % t.cols;
    const rows = Math.ceil(Math.min(t.per, N - k * t.per) / t.cols);
    Object.assign(e.style, { width: t.w * scale + "px", height: t.h * scale + "px", backgroundImage: `url(${page(k)})`,
      backgroundSize: `${t.cols * t.w * scale}px ${rows * t.h * scale}px`, backgroundPosition: `${-col * t.w * scale}px ${-row * t.h * scale}px` });
  }
  const called = i => about.ids[i] + (labels.codes[i] >= 0 ? `, ${labelOf(i)}` : "");
  function sheet() {
    const rows = selected(), box = $("sheet");
    $("sheet-said").textContent = rows.length ? `Selected images: ${rows.length}` : "Selected images: none";
    box.replaceChildren(...rows.slice(0, shown).map(i => {
      const b = document.createElement("button");
      b.type = "button"; b.title = called(i); b.dataset.row = i; b.setAttribute("aria-label", called(i));
      if (about.thumbs) picture(b, i, about.thumbs.h < 40 ? 40 / about.thumbs.h : 1); else { b.className = "word"; b.textContent = about.ids[i]; }
      return b;
    }));
    $("more").hidden = rows.length <= shown;
  }
  function detail(i) {
    const box = $("detail");
    box.replaceChildren();
    ring(i);
    if (i < 0) return;
    if (about.thumbs) {
      const e = document.createElement("div");
      e.className = "big"; e.setAttribute("role", "img"); e.setAttribute("aria-label", "Image " + called(i));
      picture(e, i, Math.max(1, Math.round(128 / about.thumbs.h)));
      box.append(e);
    }
    const list = document.createElement("dl");
    list.tabIndex = 0;
    const row = (k, v) => { const a = document.createElement("dt"), b = document.createElement("dd"); a.textContent = k; b.textContent = v; list.append(a, b); };
    row("id", about.ids[i]); row("label", labelOf(i) || "none");
    if (spread) row("head says", `${labels.names[spread.codes[i]]}, ${spread.p[i].toFixed(2)}`);
    for (const [k, c] of Object.entries(columns)) if (c.codes[i] >= 0 && c.values[c.codes[i]] !== "") row(k, c.values[c.codes[i]]);
    for (const [k, n] of Object.entries(numbers)) if (told(n, i)) row(k, told(n, i));
    box.append(list);
    if (selected().length < 2) return;
    const only = Object.assign(document.createElement("button"), { type: "button", textContent: "Select only this one" });
    only.addEventListener("click", () => select([i], "One image."));
    box.append(only);
  }

  // ---- the table
  let ticked = new Set();
  function table() {
    const g = groupsOf(), n = new Map(), inside = new Map(), named = new Map();
    for (let i = 0; i < N; i++) { n.set(g.codes[i], (n.get(g.codes[i]) || 0) + 1); if (labels.codes[i] >= 0) named.set(g.codes[i], (named.get(g.codes[i]) || 0) + 1); }
    for (const i of selected()) inside.set(g.codes[i], (inside.get(g.codes[i]) || 0) + 1);
    $("by-said").textContent = by;
    const at = document.activeElement && document.activeElement.dataset ? [document.activeElement.dataset.group, document.activeElement.type] : [];
    $("groups").replaceChildren(...[...n.keys()].sort((a, b) => n.get(b) - n.get(a)).slice(0, 500).map(c => {
      const tr = document.createElement("tr"), cell = v => { const td = document.createElement("td"); td.append(v); tr.append(td); return td; };
      const title = c < 0 ? (by === "label" ? "no label" : "none") : g.values[c];
      const tick = document.createElement("input"), go = document.createElement("button"), mark = document.createElement("span");
      tick.type = "checkbox"; tick.checked = ticked.has(c); tick.dataset.group = c; tick.setAttribute("aria-label", "tick " + title);
      go.type = "button"; go.dataset.group = c; go.title = "Select all of it";
      mark.className = "swatch"; mark.style.background = colour(c);
      go.append(mark, String(title));
      cell(tick); cell(go); cell(n.get(c).toLocaleString("en")); cell(inside.get(c) || ""); cell(named.get(c) || "");
      if (String(c) === at[0]) queueMicrotask(() => (at[1] === "checkbox" ? tick : go).focus());
      return tr;
    }));
  }

  // ---- in and out
  function say(text) { $("said").textContent = text; }
  const named = () => labels.codes.reduce((s, c) => s + (c >= 0), 0);
  let unsaved = false; // given here, and neither kept nor exported
  function keep() {
    try { localStorage.setItem(KEY, JSON.stringify({ names: labels.names, codes: runs(labels.codes) })); unsaved = false; }
    catch { unsaved = true; } // a private window, or a full one
  }
  function runs(codes) { const out = []; for (let i = 0; i < N; i++) { const l = out[out.length - 1]; if (l && l[0] === codes[i]) l[1]++; else out.push([codes[i], 1]); } return out; }
  function recall() { // true if there were some
    try {
      const kept = JSON.parse(localStorage.getItem(KEY));
      if (!kept || kept.codes.reduce((s, r) => s + r[1], 0) !== N) return false;
      labels.names = kept.names;
      let i = 0;
      for (const [c, n] of kept.codes) { labels.codes.fill(c, i, i + n); i += n; }
      return true;
    } catch { return false; } // a private window
  }
  function changed(what, given) {
    spread = null;
    $("accept").disabled = true; $("spread-said").textContent = "";
    $("names").replaceChildren(...[...new Set(labels.codes)].filter(c => c >= 0).map(c => Object.assign(document.createElement("option"), { value: labels.names[c] })));
    ready(); table(); sheet();
    if (given) keep();
    if (by === "label") paint();
    say(`${what} ${named()} of ${N} images have a label.${unsaved ? " This browser cannot keep them: export before you close." : ""}`);
  }
  function ready() {
    const some = selected().length > 0;
    for (const id of ["name-selected", "unname"]) $(id).disabled = !some;
    $("like").disabled = !some || !z;
    $("undo").disabled = !labels.done.length; $("redo").disabled = !labels.undone.length;
    $("name-ticked").disabled = !ticked.size; $("split").disabled = !(z && ticked.size === 1 && by === "label" && ![...ticked].includes(-1));
    $("spread").disabled = !z || new Set(labels.codes).size - new Set(labels.codes).has(-1) < 2;
    $("csv").disabled = $("json").disabled = !named();
  }
  const quoted = v => { v = String(v); return /[",\r\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v; };
  function csv() {
    const said = { ...Object.fromEntries(Object.entries(columns).map(([k, c]) => [k, i => c.codes[i] < 0 ? "" : c.values[c.codes[i]]])), ...Object.fromEntries(Object.entries(numbers).map(([k, n]) => [k, i => told(n, i)])) };
    const lines = [["id", "label", ...Object.keys(said)].map(quoted).join(",")];
    rowsWhere(i => labels.codes[i] >= 0).forEach(i => lines.push([about.ids[i], labelOf(i), ...Object.values(said).map(f => f(i))].map(quoted).join(",")));
    return lines.join("\r\n") + "\r\n";
  }
  function json() {
    return JSON.stringify({ title: about.title, digest: about.digest, labels: rowsWhere(i => labels.codes[i] >= 0).map(i => ({ id: about.ids[i], label: labelOf(i) })), steps: labels.done.map(s => s.what) }, null, 1);
  }
  function save(name, text, type) {
    const a = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 1000);
    unsaved = false;
    say(`${name}: ${named()} images. planetlab.labelling.read_labels reads it.`);
  }
  function fields(text) { // of CSV
    const rows = [[]];
    for (const m of text.replace(/^\ufeff/, "").matchAll(/("(?:[^"]|"")*"|[^,\r\n]*)(,|\r?\n|$)/g)) {
      rows[rows.length - 1].push(m[1].startsWith('"') ? m[1].slice(1, -1).replaceAll('""', '"') : m[1]);
      if (m[2] === "") break;
      if (m[2] !== ",") rows.push([]);
    }
    return rows.filter(r => r.length > 1);
  }
  function take(name, text) {
    let pairs;
    try {
      if (name.endsWith(".json")) pairs = JSON.parse(text).labels.map(r => [r.id, r.label]);
      else { const [top, ...rest] = fields(text), a = top.indexOf("id"), b = top.indexOf("label"); pairs = rest.map(r => [r[a], r[b]]); if (a < 0 || b < 0) throw 0; }
    } catch { return say(`${name} holds no labels; give a .csv with the columns id and label, or a .json exported here.`); }
    pairs = pairs.map(p => [String(p[0]), clean(p[1])]).filter(p => p[1]);
    const row = new Map(about.ids.map((v, i) => [v, i])), odd = pairs.filter(p => !row.has(p[0])), of = new Map();
    if (odd.length) return say(`${odd.length} ids in ${name}, “${odd[0][0]}” for one, are not among these images; are these labels of another run?`);
    const twice = pairs.find(([id, label]) => { const known = of.get(id); of.set(id, label); return known !== undefined && known !== label; });
    if (twice) return say(`“${twice[0]}” has two labels in ${name}; keep one line for each id.`);
    change(`${of.size} labels from ${name}`, [...of.keys()].map(id => row.get(id)), [...of.values()].map(code));
  }

  // ---- what buttons do
  function listen() {
    const on = (id, event, f) => $(id).addEventListener(event, f);
    on("by", "change", () => { by = $("by").value; ticked = new Set(); paint(); table(); ready(); outline(); });
    on("chart", "change", () => { chart = +$("chart").value; showChart(); });
    on("fit", "click", fitAll);
    on("find", "submit", e => { e.preventDefault(); const rows = search($("search").value); select(rows, `${rows.length} images found.`); });
    on("naming", "submit", e => { e.preventDefault(); const name = clean($("name").value); if (!name) return say("Type a name first."); if (selected().length) nameRows(selected(), name); else say("Select images first."); });
    on("name-ticked", "click", () => {
      const name = clean($("name").value), g = groupsOf(), rows = rowsWhere(i => ticked.has(g.codes[i]));
      if (!name) { $("name").focus(); return say("Type the name that the ticked groups shall have."); }
      const what = `${ticked.size} groups merged into “${name}”`;
      ticked = new Set();
      nameRows(rows, name, what);
    });
    on("split", "click", () => {
      const [c] = ticked, rows = rowsWhere(i => labels.codes[i] === c), parts = halves(rows), name = labels.names[c];
      if (!parts[1].length) return say(`The images of “${name}” all look the same to the encoder; they cannot be split.`);
      const used = new Set(Array.from(new Set(labels.codes), k => k < 0 ? "" : labels.names[k])), free = [];
      for (let k = 1; free.length < 2; k++) if (!used.has(`${name} ${k}`)) free.push(code(`${name} ${k}`));
      const to = free, second = new Set(parts[1]);
      ticked = new Set();
      change(`“${name}” split in two`, rows, rows.map(i => to[+second.has(i)]));
    });
    on("unname", "click", () => nameRows(selected(), ""));
    on("undo", "click", () => step("done", "undone", "before", "undo"));
    on("redo", "click", () => step("undone", "done", "after", "redo"));
    on("none", "click", () => select([], "Nothing selected."));
    on("like", "click", () => { const asked = selected(), found = like(asked, 24); shown = 60; select(found, `${found.length} images most like ${asked.length > ASKED ? `the first ${ASKED} of` : "the"} ${asked.length} that were selected${about.apart ? `, of another ${about.apart}` : ""}.`); });
    on("spread", "click", () => {
      say("Learning from your names …");
      $("spread").disabled = true;
      setTimeout(() => { // after the words are seen
        spread = head();
        by = $("by").value = "label";
        paint(); table(); offer(); ready();
        say(`A head learned ${spread.n} of your names.`);
      }, 30);
    });
    on("least", "input", () => { if (spread) { paint(); offer(); } });
    on("accept", "click", () => {
      const rows = rowsWhere(i => labels.codes[i] < 0 && spread.p[i] >= +$("least").value), after = rows.map(i => spread.codes[i]);
      change(`${rows.length} images named by the head, p ≥ ${+$("least").value}`, rows, after);
    });
    on("groups", "change", e => { const c = +e.target.dataset.group; if (e.target.checked) ticked.add(c); else ticked.delete(c); ready(); });
    on("groups", "click", e => { const b = e.target.closest("button"); if (!b) return; const c = +b.dataset.group, g = groupsOf(), rows = rowsWhere(i => g.codes[i] === c); shown = 60; select(rows, `${rows.length} images of ${by} ${b.textContent}.`); });
    on("sheet", "click", e => { const b = e.target.closest("button"); if (b) detail(+b.dataset.row); });
    on("sheet", "dblclick", e => { const b = e.target.closest("button"); if (b) select([+b.dataset.row], "One image."); });
    on("sheet", "focusin", e => { const b = e.target.closest("button"); if (b) ring(+b.dataset.row); });
    on("more", "click", () => { shown += 240; sheet(); });
    on("csv", "click", () => save("labels.csv", csv(), "text/csv"));
    on("json", "click", () => save("labels.json", json(), "application/json"));
    on("import", "change", async e => { const f = e.target.files[0]; if (f) take(f.name, await f.text()); e.target.value = ""; });
    document.addEventListener("keydown", e => {
      if (/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName) && document.activeElement.type !== "checkbox") return;
      if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "z") { e.preventDefault(); $(e.shiftKey ? "redo" : "undo").click(); }
      if (e.key === "Escape") $("none").click();
    });
    addEventListener("storage", e => { if (e.key === KEY) say("These labels were changed in another tab; reload before you go on, or the last to write wins."); });
    addEventListener("beforeunload", e => { if (unsaved) e.preventDefault(); });
    dark.addEventListener("change", () => { theme(); table(); outline(); });
  }
  function offer() {
    const n = rowsWhere(i => labels.codes[i] < 0 && spread.p[i] >= +$("least").value).length;
    $("spread-said").textContent = `would name ${n} more, learned from ${spread.n}; probabilities are not calibrated`;
    $("accept").disabled = !n;
  }

  function start() {
    const doc = Bokeh.documents[0];
    [points, outlines, ringed, latents, place] = ["points", "outlines", "ringed", "latents", "place"].map(n => doc.get_model_by_name(n));
    $("by").replaceChildren(...[...about.groups, "label"].map(k => Object.assign(document.createElement("option"), { value: k, textContent: k, selected: k === by })));
    $("chart").replaceChildren(...charts.map((c, i) => Object.assign(document.createElement("option"), { value: i, textContent: c.name })));
    $("chart-choice").hidden = charts.length < 2;
    $("heading").hidden = $("like").hidden = $("split").hidden = !z;
    for (const [n, c] of about.labels) { labels.names.push(n); for (const i of c) labels.codes[i] = labels.names.length - 1; }
    const back = recall();
    listen();
    if (place) showChart(); else $("place").hidden = true;
    points.selected.connect(points.selected.properties.indices.change, () => { shown = 60; ready(); sheet(); table(); detail(selected().length === 1 ? selected()[0] : -1); if (selected().length > 1) say(`${selected().length} images selected.`); });
    fit(latents, $("latent-map"), about.box);
    theme();
    changed(back ? `${N} images, and the labels that this browser kept.` : `${N} images.`);
    if (about.example >= 0) detail(about.example);
    requestAnimationFrame(() => { document.body.dataset.ready = performance.now().toFixed(0); });
  }
  window.explorer = { labels, select, selected, csv, json, search, like, head, about }; // for the console, and for tests
  const wait = () => { const doc = Bokeh.documents[0]; if (doc && doc.get_model_by_name("points") && doc.is_idle) start(); else requestAnimationFrame(wait); };
  requestAnimationFrame(wait);
})();
