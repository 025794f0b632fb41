// Search without a server: the words of the book lie in words.js, which is loaded when someone begins to search.
const box = document.getElementById("page-search"), hits = document.getElementById("page-hits"), said = document.getElementById("page-said");
const menu = document.getElementById("page-menu"), nav = document.querySelector("nav.book"), top_ = document.body.dataset.top;
document.body.classList.add("small");
menu.addEventListener("click", () => menu.setAttribute("aria-expanded", nav.classList.toggle("open")));
document.querySelector("nav.book [aria-current]")?.scrollIntoView({block: "nearest"});

function load() {
  if (window.words || document.getElementById("page-words")) return;
  const script = Object.assign(document.createElement("script"), {id: "page-words", src: top_ + "words.js"});
  script.onload = show;
  document.head.append(script);
}

function find(asked) {
  const wanted = asked.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  if (!wanted.length) return found;
  for (const [page, anchor, heading, text] of window.words.parts) {
    const [path, title] = window.words.pages[page], head = heading.toLowerCase(), name = title.toLowerCase(), all = text.toLowerCase();
    let score = 0;
    for (const w of wanted) {
      const s = (head === w ? 30 : head.startsWith(w) ? 12 : head.includes(w) ? 8 : 0) + (name.includes(w) ? 5 : 0) + (all.includes(w) ? 2 : 0);
      if (!s) { score = 0; break; }
      score += s;
    }
    if (score) found.push({score, path, title, anchor, heading, text, at: all.indexOf(wanted[0]), length: wanted[0].length});
  }
  return found.sort((a, b) => b.score - a.score).slice(0, 20);
}

function show() {
  if (!window.words) return load();
  const found = find(box.value);
  said.textContent = box.value.trim() ? (found.length ? `${found.length} of the best places` : "Nothing found; try another word") : "";
  hits.replaceChildren(...found.map(f => {
    const item = document.createElement("li"), link = document.createElement("a"), excerpt = document.createElement("small");
    link.href = top_ + f.path + (f.anchor ? "#" + f.anchor : "");
    link.textContent = f.heading === f.title ? f.title : `${f.title}: ${f.heading}`;
    const from = Math.max(0, f.at - 50), mark = document.createElement("mark");
    mark.textContent = f.text.slice(Math.max(f.at, 0), f.at + f.length);
    if (f.at < 0) excerpt.append(f.text.slice(0, 140));
    else excerpt.append(f.text.slice(from, f.at), mark, f.text.slice(f.at + f.length, from + 140));
    item.append(link, excerpt);
    return item;
  }));
}

box.addEventListener("focus", load);
box.addEventListener("input", show);
document.addEventListener("keydown", e => {
  if (e.key === "/" && e.target !== box) { e.preventDefault(); box.focus(); }
  if (e.key === "Escape" && e.target === box) { box.value = ""; show(); }
});
