// Draws what /overview.json says, every second. Text goes in as text, never as HTML.

const SECONDS = 300;
const CHARTS = [
  ["tokens/s", (replica) => replica.tokens_per_second, number],
  ["answers that run", (replica) => replica.running, number],
  ["missed prompt tokens/s", (replica) => replica.missed_per_second, number],
  ["KV blocks held", (replica) => share(replica.used_blocks, replica.total_blocks), percent],
];
const histories = new Map();

function share(part, whole) { return whole ? part / whole : null; }
function number(value) {
  return value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
}
function percent(value) { return value === null ? "–" : `${Math.round(value * 100)} %`; }

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function shape(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function remember(key, value) {
  const points = histories.get(key) ?? [];
  points.push(value);
  if (points.length > SECONDS) points.shift();
  histories.set(key, points);
  return points;
}

function chart(name, points, text) {
  const top = Math.max(...points.filter((value) => value !== null), 1e-9);
  let path = "";
  points.forEach((value, index) => {
    if (value === null) return;
    const pen = path === "" || points[index - 1] === null ? "M" : "L";
    path += `${pen}${SECONDS - points.length + index} ${(100 - (95 * value) / top).toFixed(1)}`;
  });
  const picture = shape("svg", { viewBox: `0 0 ${SECONDS} 100`, preserveAspectRatio: "none", role: "img" });
  picture.append(shape("title", {}, `${name}, last five minutes, at most ${text(top)}`), shape("path", { d: path }));
  const caption = element("figcaption", {}, element("span", {}, name), element("b", {}, text(points.at(-1))));
  return element("figure", {}, caption, picture);
}

function rankCell(rank) {
  if (!rank) return element("td");
  const cell = element("td", {}, `${rank.node} ${rank.device}`);
  if (rank.phase !== "ready") {
    cell.append(element("small", { class: rank.phase }, `${rank.phase} ${percent(rank.loaded)}`));
    return cell;
  }
  if (rank.slow) cell.append(" ", element("b", { class: "slow" }, "slow"));
  cell.append(
    element("small", {}, `step ${rank.step.toLocaleString("en")}, ${number(rank.steps_per_second)}/s`),
    element("small", {}, `MFU ${percent(rank.mfu)}, MBU ${percent(rank.mbu)}`),
    element("small", {}, `busy ${percent(rank.busy)}, ${percent(rank.waiting)} of it in collectives`),
  );
  return cell;
}

function rankTable(ranks) {
  const width = Math.max(...ranks.map((rank) => rank.tensor_rank)) + 1;
  const stages = [...new Set(ranks.map((rank) => rank.stage))].sort((a, b) => a - b);
  const table = element("table");
  const columns = Array.from({ length: width }, (_, index) => element("th", {}, `rank ${index}`));
  table.append(element("tr", {}, element("th", {}, "stage"), ...columns));
  for (const stage of stages) {
    const cells = columns.map((_, index) =>
      rankCell(ranks.find((rank) => rank.stage === stage && rank.tensor_rank === index)));
    table.append(element("tr", {}, element("th", {}, String(stage)), ...cells));
  }
  return table;
}

function replicaCard(region, replica) {
  const title = element("h3", {}, replica.replica_id, element("span", { class: `state ${replica.state}` }, replica.state));
  title.append(element("small", {}, `epoch ${replica.epoch}, ${replica.waiting} wait, hits ${percent(replica.hit_share)}`));
  const card = element("article", {}, title);
  if (replica.reason) card.append(element("p", {}, replica.reason));
  const charts = CHARTS.map(([name, value, text]) =>
    chart(name, remember(`${region.name}/${replica.replica_id}/${name}`, value(replica)), text));
  card.append(element("div", { class: "charts" }, ...charts));
  if (replica.ranks.length) card.append(rankTable(replica.ranks));
  return card;
}

function places(regions) {
  // Regions without a place on Earth stand in a row below the others.
  const homeless = regions.filter((region) => !region.location);
  return regions.map((region) => region.location
    ? [region.location[1], -region.location[0]]
    : [(360 * (homeless.indexOf(region) + 1)) / (homeless.length + 1) - 180, 45]);
}

function drawMap(regions) {
  const map = document.getElementById("map");
  const parts = [];
  for (let longitude = -180; longitude <= 180; longitude += 30)
    parts.push(shape("line", { class: "grid", x1: longitude, x2: longitude, y1: -80, y2: 60 }));
  for (let latitude = -60; latitude <= 80; latitude += 20)
    parts.push(shape("line", { class: "grid", x1: -180, x2: 180, y1: -latitude, y2: -latitude }));
  const spots = places(regions);
  spots.forEach(([x1, y1], index) => spots.slice(index + 1).forEach(([x2, y2]) =>
    parts.push(shape("line", { class: "link", x1, y1, x2, y2 }))));
  regions.forEach((region, index) => {
    const [x, y] = spots[index];
    const running = region.replicas.reduce((sum, replica) => sum + replica.running, 0);
    const ready = region.replicas.filter((replica) => replica.state === "ready").length;
    const dot = shape("circle", { cx: x, cy: y, r: 3 + Math.min(6, Math.sqrt(running)) });
    const told = region.problem ? "no answer" : `${ready} of ${region.replicas.length} ready, ${running} run`;
    parts.push(shape("g", { class: region.problem ? "lost" : "" }, dot,
      shape("text", { x, y: y + 12 }, region.name), shape("text", { x, y: y + 18 }, told)));
  });
  map.replaceChildren(...parts);
}

function draw(regions) {
  document.querySelector("main").hidden = false;
  document.getElementById("login").hidden = true;
  const replicas = regions.flatMap((region) => region.replicas);
  const ready = replicas.filter((replica) => replica.state === "ready").length;
  const running = replicas.reduce((sum, replica) => sum + replica.running, 0);
  document.getElementById("summary").textContent =
    `${regions.length} region(s), ${ready} of ${replicas.length} replicas ready, ${running} answers run`;
  drawMap(regions);
  const shown = regions.map((region) => {
    const part = element("div", {}, element("h2", {}, region.name), element("p", {}, region.problem || region.controller));
    part.append(...region.replicas.map((replica) => replicaCard(region, replica)));
    return part;
  });
  document.getElementById("regions").replaceChildren(...shown);
}

function askForKey(message) {
  document.querySelector("main").hidden = true;
  document.getElementById("login").hidden = false;
  document.getElementById("summary").textContent = "";
  document.getElementById("refusal").textContent = message;
}

async function look() {
  const key = sessionStorage.getItem("key");
  try {
    const answer = await fetch("overview.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    const told = await answer.json();
    if (answer.status === 401 || answer.status === 403) return askForKey(key ? told.error.message : "");
    if (!answer.ok) throw new Error(told.error.message);
    draw(told.regions);
  } catch (error) {
    document.getElementById("summary").textContent = `No answer: ${error.message}`;
  }
  setTimeout(look, 1000);
}

document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", document.getElementById("key").value.trim());
  look();
});
look();
