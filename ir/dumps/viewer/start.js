/* Starts the viewer with the data that the page holds. */

document.addEventListener("click", (event) => {
  if (event.target.closest('a[href="#"]')) event.preventDefault();
});
window.viewer = new Viewer(JSON.parse(document.getElementById("data").textContent));
window.viewer.start();
document.documentElement.dataset.ready = performance.now().toFixed(1);
