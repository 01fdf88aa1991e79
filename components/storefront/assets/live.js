// Keeps the tile of the featured product alive. Without it the tile shows the product it was rendered with.
const tile = document.getElementById("featured");

if (tile && window.EventSource) {
  const link = tile.querySelector("a");
  const price = tile.querySelector(".price");
  const events = new EventSource("/events");

  events.addEventListener("featured", (event) => {
    const product = JSON.parse(event.data);
    if (!product) return;
    link.href = `/p/${encodeURIComponent(product.sku)}`;
    link.textContent = product.name;
    price.textContent = product.price;
  });

  addEventListener("pagehide", () => events.close());
}
