-- More tables than the source's lock table has room for: pg_dump would fill it, and the application's statements would fail.
DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY)', i);
  IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$;
