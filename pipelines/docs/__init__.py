"""What the documentation site says of the code: pages that are made of it whenever the site is built."""
