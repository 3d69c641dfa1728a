// Everything is asked of the server, below the address of this page: its token goes along.

export class Served {
  async ask(path, parameters = {}, options = {}) {
    const response = await this.response(path, parameters, options);
    return response.json();
  }

  async response(path, parameters = {}, options = {}) {
    let response;
    try {
      response = await fetch(this.address(path, parameters), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer: `labelgen view` has ended. Start it again, and open its new address.");
    }
    if (!response.ok) {
      const told = await response.text();
      let words = told;
      try {
        words = JSON.parse(told).error;
      } catch {
        // plain words
      }
      throw new Error(words);
    }
    return response;
  }

  address(path, parameters = {}) {
    const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
    return `api/${path}?${new URLSearchParams(given)}`;
  }

  about() {
    return this.ask("about");
  }

  summary(conditions) {
    return this.ask("summary", { conditions });
  }

  entries(conditions, order, start, count) {
    return this.ask("entries", { conditions, order, start, count });
  }

  async place(conditions, order, { unit, index }) {
    return (await this.ask(`place/${unit}/${index}`, { conditions, order })).place;
  }

  image(set, { unit, index }, conditions) {
    return this.ask(`image/${set}/${unit}/${index}`, { conditions });
  }

  async refined(set, { unit, index }, layer) {
    return (await this.ask(`refined/${set}/${unit}/${index}`, { layer })).masks;
  }

  async beside(set, { unit, index }) {
    const { found } = await this.ask(`beside/${set}/${unit}/${index}`);
    return found && { unit: found[0], index: found[1] };
  }

  tile({ unit, index }, what, conditions, side) {
    const more = { photo: {}, masks: { conditions }, doubt: { layer: JSON.parse(conditions).layer } };
    return this.address(`tile/0/${unit}/${index}`, { what, side, ...more[what] });
  }

  // Why a tile cannot be shown, in words.
  async whyNot(address) {
    try {
      const response = await fetch(address);
      return response.ok ? "" : (await response.json()).error;
    } catch {
      return "no answer";
    }
  }

  async photo(set, { unit, index }, part = null) {
    const response = await this.response(`photo/${set}/${unit}/${index}`, { part });
    const note = response.headers.get("X-Note");
    return { bitmap: await createImageBitmap(await response.blob()), note: note && decodeURIComponent(note) };
  }

  async doubt(set, { unit, index }, layer, mask) {
    const response = await this.response(`doubt/${set}/${unit}/${index}`, { layer, mask });
    return createImageBitmap(await response.blob());
  }

  save(wanted) {
    return this.ask("save", {}, { method: "POST", body: JSON.stringify(wanted) });
  }

  lookAgain() {
    return this.ask("look_again", {}, { method: "POST" });
  }
}
