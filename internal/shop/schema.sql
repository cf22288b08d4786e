-- The sample shop. Runs as the plain owner of an empty database (no
-- superuser), on Postgres 13 and later, with the default search_path.

CREATE EXTENSION IF NOT EXISTS citext;

CREATE SCHEMA shop;
CREATE SCHEMA "BackOffice";
COMMENT ON SCHEMA shop IS 'what the shop keeps about itself: ledger, audit, sequences';

-- Types ---------------------------------------------------------------------

CREATE TYPE order_status AS ENUM ('placed', 'paid', 'on hold', 'shipped', 'delivered', 'cancelled');
CREATE TYPE product_tag AS ENUM ('new', 'sale', 'fragile', 'heavy', 'gift');
CREATE TYPE postal_address AS (street text, city text, zip varchar(12), country char(2));
CREATE DOMAIN email_address AS text CHECK (VALUE ~ '^[^@[:space:]]+@[^@[:space:]]+$');
CREATE DOMAIN amount AS numeric(14, 2) NOT NULL DEFAULT 0 CHECK (VALUE >= 0);
CREATE TYPE "BackOffice"."Level" AS ENUM ('Low', 'HIGH', 'it''s urgent');
COMMENT ON TYPE order_status IS 'the life of an order; one label holds a space';

-- Standalone sequences ------------------------------------------------------

CREATE SEQUENCE shop.invoice_number START WITH 1000 INCREMENT BY 5 CACHE 1;
CREATE SEQUENCE shop.ticket_wheel AS integer MINVALUE 1 MAXVALUE 500 CYCLE;
CREATE SEQUENCE shop.countdown INCREMENT BY -1 MINVALUE -9000000000 MAXVALUE -1;
CREATE SEQUENCE shop.never_used START WITH 77;
COMMENT ON SEQUENCE shop.invoice_number IS 'invoice numbers leave room for corrections';

-- Functions used by constraints and defaults --------------------------------

CREATE FUNCTION shop.is_sku(value text) RETURNS boolean
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  AS $$ SELECT value ~ '^[A-Z]{2}-[0-9]{6}$' $$;

CREATE FUNCTION shop.next_ticket() RETURNS text
  LANGUAGE plpgsql
  AS $$
BEGIN
  RETURN 'T' || lpad(nextval('shop.ticket_wheel')::text, 4, '0');
END
$$;

-- Customers and products ----------------------------------------------------

CREATE TABLE customers (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  legacy_code  text,
  email        email_address NOT NULL,
  name         text NOT NULL,
  name_key     text GENERATED ALWAYS AS (lower(name)) STORED,
  address      postal_address,
  location     point,
  referred_by  bigint REFERENCES customers ON UPDATE CASCADE ON DELETE SET NULL,
  preferences  jsonb NOT NULL DEFAULT '{}',
  last_ip      inet,
  networks     cidr[],
  credit       numeric(12, 2) NOT NULL DEFAULT 0,
  rating       double precision,
  member_until timestamptz NOT NULL DEFAULT 'infinity',
  born_on      date,
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 90);
ALTER TABLE customers DROP COLUMN legacy_code;
CREATE UNIQUE INDEX customers_email_key ON customers (lower(email));
CREATE INDEX customers_referred_by_idx ON customers (referred_by) WHERE referred_by IS NOT NULL;
CREATE INDEX customers_name_idx ON customers (name COLLATE "C" DESC NULLS LAST) INCLUDE (credit);
CREATE INDEX customers_preferences_idx ON customers USING gin (preferences jsonb_path_ops);
COMMENT ON TABLE customers IS 'people who buy; "quotes" and \backslashes in a comment';
COMMENT ON COLUMN customers.credit IS 'in the shop''s currency';

CREATE TABLE products (
  id          serial PRIMARY KEY,
  sku         text NOT NULL UNIQUE CHECK (shop.is_sku(sku)),
  title       varchar(200) NOT NULL,
  description text,
  price       amount,
  tags        product_tag[] NOT NULL DEFAULT '{}',
  sizes       numeric[],
  labels      text[],
  warranty    interval,
  age_range   int4range,
  document    jsonb,
  thumbnail   bytea,
  flags       bit varying(16),
  search      tsvector GENERATED ALWAYS AS (to_tsvector('pg_catalog.english', title)) STORED,
  updated_at  timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE products ALTER COLUMN thumbnail SET STORAGE EXTERNAL;
ALTER TABLE products ADD CONSTRAINT products_title_check CHECK (title <> '') NOT VALID;
CREATE INDEX products_search_idx ON products USING gin (search);
CREATE INDEX products_sale_idx ON products (price) WHERE tags @> '{sale}'::product_tag[];
CREATE INDEX products_words_idx ON products ((lower(title)), (document ->> 'brand'));

CREATE TABLE categories (
  code    citext PRIMARY KEY,
  parent  citext REFERENCES categories ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
  caption text NOT NULL DEFAULT ''
);
COMMENT ON COLUMN categories.code IS 'case does not matter to equality, yet is kept';

CREATE TABLE product_categories (
  product_id    integer REFERENCES products ON UPDATE CASCADE ON DELETE CASCADE,
  category_code citext REFERENCES categories ON UPDATE CASCADE ON DELETE CASCADE,
  weight        real NOT NULL DEFAULT 1,
  PRIMARY KEY (product_id, category_code)
);
CREATE INDEX product_categories_code_idx ON product_categories (category_code);

-- No primary key: a unique index on NOT NULL columns.
CREATE TABLE price_history (
  product_id integer NOT NULL REFERENCES products ON UPDATE CASCADE ON DELETE CASCADE,
  valid_from timestamp NOT NULL,
  price      numeric,
  reason     text
);
CREATE UNIQUE INDEX price_history_key ON price_history (product_id, valid_from);

-- Carts and orders ----------------------------------------------------------

CREATE TABLE carts (
  id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  customer_id bigint REFERENCES customers ON UPDATE CASCADE ON DELETE CASCADE,
  ticket      text NOT NULL DEFAULT shop.next_ticket(),
  payload     json,
  opened_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX carts_customer_idx ON carts USING hash (customer_id);

CREATE TABLE cart_items (
  cart_id    uuid REFERENCES carts ON UPDATE CASCADE ON DELETE CASCADE,
  line       smallint,
  product_id integer REFERENCES products ON UPDATE CASCADE ON DELETE SET NULL,
  quantity   integer NOT NULL CHECK (quantity > 0),
  PRIMARY KEY (cart_id, line)
);
CREATE INDEX cart_items_product_idx ON cart_items (product_id);

CREATE TABLE cart_archive (
  archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  cart_id     uuid NOT NULL,
  line        smallint NOT NULL,
  contents    jsonb NOT NULL,
  PRIMARY KEY (cart_id, line)
);

CREATE TABLE orders (
  id          bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  customer_id bigint REFERENCES customers ON UPDATE CASCADE ON DELETE SET NULL,
  status      order_status NOT NULL DEFAULT 'placed',
  total       amount,
  tax         numeric GENERATED ALWAYS AS (total * 0.2) STORED,
  invoice     bigint UNIQUE,
  note        text,
  placed_at   timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_customer_idx ON orders (customer_id) INCLUDE (status, total);
CREATE INDEX orders_open_idx ON orders (placed_at) WHERE status IN ('placed', 'paid', 'on hold');
CREATE STATISTICS orders_status_stats (dependencies, ndistinct) ON customer_id, status FROM orders;
ALTER TABLE orders ALTER COLUMN status SET STATISTICS 200;

CREATE TABLE order_lines (
  order_id   bigint REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE,
  line       integer,
  product_id integer NOT NULL REFERENCES products ON UPDATE CASCADE,
  quantity   integer NOT NULL,
  unit_price numeric(12, 2) NOT NULL,
  amount     numeric GENERATED ALWAYS AS (quantity * unit_price) STORED,
  PRIMARY KEY (order_id, line),
  CHECK (quantity > 0 AND unit_price >= 0)
);
CREATE INDEX order_lines_product_idx ON order_lines (product_id);

-- Partitioned by month; one partition was attached with another column order.
CREATE SEQUENCE order_events_id_seq;
CREATE TABLE order_events (
  id          bigint NOT NULL DEFAULT nextval('order_events_id_seq'),
  happened_at timestamptz NOT NULL,
  order_id    bigint REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE,
  kind        text NOT NULL,
  detail      jsonb,
  PRIMARY KEY (id, happened_at)
) PARTITION BY RANGE (happened_at);
ALTER SEQUENCE order_events_id_seq OWNED BY order_events.id;
CREATE TABLE order_events_2025_01 PARTITION OF order_events
  FOR VALUES FROM ('2025-01-01 00:00+00') TO ('2025-02-01 00:00+00');
CREATE TABLE order_events_2025_02 PARTITION OF order_events
  FOR VALUES FROM ('2025-02-01 00:00+00') TO ('2025-03-01 00:00+00');
CREATE TABLE order_events_2025_03 (
  kind        text NOT NULL,
  gone        integer,
  detail      jsonb,
  order_id    bigint,
  happened_at timestamptz NOT NULL,
  id          bigint NOT NULL DEFAULT nextval('order_events_id_seq')
);
ALTER TABLE order_events_2025_03 DROP COLUMN gone;
ALTER TABLE order_events ATTACH PARTITION order_events_2025_03
  FOR VALUES FROM ('2025-03-01 00:00+00') TO ('2025-04-01 00:00+00');
CREATE TABLE order_events_2025_04 PARTITION OF order_events
  FOR VALUES FROM ('2025-04-01 00:00+00') TO ('2025-05-01 00:00+00');
CREATE TABLE order_events_other PARTITION OF order_events DEFAULT;
CREATE INDEX order_events_order_idx ON order_events (order_id);

-- Stock, shelves, lockers, vouchers, deliveries -----------------------------

CREATE TABLE stock_levels (
  product_id integer REFERENCES products ON UPDATE CASCADE ON DELETE CASCADE,
  warehouse  varchar(8),
  quantity   bigint NOT NULL DEFAULT 0,
  counted_at timestamptz NOT NULL DEFAULT '-infinity',
  PRIMARY KEY (product_id, warehouse)
);

CREATE TABLE stock_movements (
  id         bigserial PRIMARY KEY,
  product_id integer NOT NULL,
  warehouse  varchar(8) NOT NULL,
  change     integer NOT NULL,
  factor     double precision,
  moved_at   timestamp(3) NOT NULL DEFAULT localtimestamp
);

CREATE TABLE shop.stock_journal (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  operation   text NOT NULL,
  movement_id bigint NOT NULL,
  change      integer
);

-- Positions move between rows while the key stays, and the key moves too.
CREATE TABLE shelf_items (
  id       bigserial PRIMARY KEY,
  shelf    integer NOT NULL,
  position integer NOT NULL,
  label    text COLLATE "C",
  CONSTRAINT shelf_items_place UNIQUE (shelf, position) DEFERRABLE INITIALLY IMMEDIATE
);

-- The same with a constraint that is checked at once, row by row.
CREATE TABLE lockers (
  id        integer GENERATED BY DEFAULT AS IDENTITY (START WITH 1 INCREMENT BY 2) PRIMARY KEY,
  code      text UNIQUE,
  opened_on date NOT NULL DEFAULT '-infinity'
);

CREATE TABLE vouchers (
  code       text PRIMARY KEY,
  worth      numeric,
  validity   tstzrange NOT NULL,
  used_by    bigint REFERENCES customers ON UPDATE CASCADE ON DELETE SET NULL,
  is_used    boolean GENERATED ALWAYS AS (used_by IS NOT NULL) STORED
);
CREATE INDEX vouchers_used_idx ON vouchers (used_by) WHERE used_by IS NOT NULL;

CREATE TABLE delivery_slots (
  day     date,
  slot    integer,
  minutes int4range NOT NULL,
  courier text,
  starts  time NOT NULL DEFAULT '08:00',
  PRIMARY KEY (day, slot),
  CONSTRAINT delivery_slots_apart EXCLUDE USING gist (minutes WITH &&)
);

CREATE TABLE exchange_rates (
  currency char(3) PRIMARY KEY,
  rate     numeric NOT NULL,
  fetched  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE exchange_rates IS 'emptied with TRUNCATE and filled again';

CREATE TABLE gift_wraps (
  id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  paper text
);
COMMENT ON TABLE gift_wraps IS 'always empty';

CREATE UNLOGGED TABLE page_views (
  id        bigserial PRIMARY KEY,
  path      text NOT NULL,
  viewer    inet,
  viewed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE support_notes (
  id          bigserial PRIMARY KEY,
  customer_id bigint REFERENCES customers ON UPDATE CASCADE ON DELETE CASCADE,
  author      text NOT NULL DEFAULT current_user,
  body        text NOT NULL
);
CREATE INDEX support_notes_customer_idx ON support_notes (customer_id);
ALTER TABLE support_notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY support_notes_author ON support_notes
  USING (author = current_user) WITH CHECK (author = current_user);

-- The back office, written by somebody who liked quotes ----------------------

CREATE TABLE "BackOffice"."Order" (
  "Id"        bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  "select"    text NOT NULL,
  "Level"     "BackOffice"."Level" NOT NULL DEFAULT 'Low',
  "Say ""hi""" text[],
  "customer"  bigint REFERENCES public.customers ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX "Order by customer" ON "BackOffice"."Order" ("customer");

CREATE TABLE "BackOffice"."Order Line" (
  "Order" bigint REFERENCES "BackOffice"."Order" ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE,
  "No."   integer,
  "user"  text,
  PRIMARY KEY ("Order", "No.")
);
COMMENT ON COLUMN "BackOffice"."Order"."select" IS 'a reserved word';

-- Ledger, audit and triggers ------------------------------------------------

CREATE TABLE shop.ledger (
  run          bigint,
  writer       integer,
  seq          bigint,
  operation    text NOT NULL,
  committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run, writer, seq)
);
COMMENT ON TABLE shop.ledger IS 'one row for each committed transaction of a writer';

CREATE TABLE shop.audit_log (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  table_name name NOT NULL,
  operation  text NOT NULL,
  row_key    text NOT NULL,
  logged_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at := clock_timestamp();
  RETURN NEW;
END
$$;

CREATE FUNCTION shop.audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO shop.audit_log (table_name, operation, row_key) VALUES (TG_TABLE_NAME, TG_OP, OLD.id::text);
    RETURN OLD;
  END IF;
  INSERT INTO shop.audit_log (table_name, operation, row_key) VALUES (TG_TABLE_NAME, TG_OP, NEW.id::text);
  RETURN NEW;
END
$$;

CREATE FUNCTION shop.journal_stock() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  moved public.stock_movements;
BEGIN
  IF TG_OP = 'DELETE' THEN moved := OLD; ELSE moved := NEW; END IF;
  INSERT INTO shop.stock_journal (operation, movement_id, change) VALUES (TG_OP, moved.id, moved.change);
  RETURN NULL;
END
$$;

CREATE TRIGGER touch BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION shop.touch();
CREATE TRIGGER touch BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION shop.touch();
CREATE TRIGGER touch BEFORE UPDATE ON orders FOR EACH ROW
  WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.total IS DISTINCT FROM NEW.total) EXECUTE FUNCTION shop.touch();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON customers
  FOR EACH ROW EXECUTE FUNCTION shop.audit();
CREATE TRIGGER audit AFTER INSERT OR DELETE OR UPDATE OF price ON products
  FOR EACH ROW EXECUTE FUNCTION shop.audit();
-- Fires whatever session_replication_role says.
CREATE TRIGGER journal AFTER INSERT OR UPDATE OR DELETE ON stock_movements
  FOR EACH ROW EXECUTE FUNCTION shop.journal_stock();
ALTER TABLE stock_movements ENABLE ALWAYS TRIGGER journal;
COMMENT ON TRIGGER journal ON stock_movements IS 'one journal row per change';

-- Views and other routines --------------------------------------------------

CREATE VIEW order_totals AS
  SELECT o.id, o.customer_id, o.status, sum(l.amount) AS amount
  FROM orders o JOIN order_lines l ON l.order_id = o.id
  GROUP BY o.id;

CREATE VIEW "BackOffice"."Good Customers" AS
  SELECT c.id, c.name, sum(t.amount) AS "Amount"
  FROM public.customers c JOIN public.order_totals t ON t.customer_id = c.id
  GROUP BY c.id HAVING sum(t.amount) > 1000;

CREATE MATERIALIZED VIEW shop.daily_sales AS
  SELECT (placed_at AT TIME ZONE 'UTC')::date AS day, count(*) AS orders, sum(total) AS total
  FROM public.orders GROUP BY 1;
CREATE UNIQUE INDEX daily_sales_day ON shop.daily_sales (day);

CREATE FUNCTION shop.customer_total(customer bigint) RETURNS numeric
  LANGUAGE sql STABLE
  AS $$ SELECT coalesce(sum(total), 0) FROM public.orders WHERE customer_id = customer $$;

CREATE PROCEDURE "BackOffice"."Rename Order"(order_id bigint, new_name text)
  LANGUAGE plpgsql
  AS $$
BEGIN
  UPDATE "BackOffice"."Order" SET "select" = new_name WHERE "Id" = order_id;
END
$$;
