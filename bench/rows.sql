-- Rows of 20 KB and of 50 MB, as text and as bytea. What is in them does not matter: EXTERNAL stores it as it is.
CREATE TABLE rows_20kb (id int NOT NULL, body text NOT NULL);
ALTER TABLE rows_20kb ALTER body SET STORAGE EXTERNAL;
INSERT INTO rows_20kb SELECT i, repeat(md5(i::text), 640) FROM generate_series(1, ceil(10000 * current_setting('bench.scale')::float8)::int) i;
ALTER TABLE rows_20kb ADD PRIMARY KEY (id);

CREATE TABLE rows_50mb (id int NOT NULL, body text, data bytea);
ALTER TABLE rows_50mb ALTER body SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL;
INSERT INTO rows_50mb SELECT i, CASE WHEN i % 2 = 0 THEN repeat(md5(i::text), 1638400) END,
       CASE WHEN i % 2 = 1 THEN decode(repeat(md5(i::text), 3276800), 'hex') END FROM generate_series(1, 12) i;
ALTER TABLE rows_50mb ADD PRIMARY KEY (id);

-- In the text format one such row is 100 MB: a type without binary functions of its own forces it.
CREATE TABLE rows_50mb_as_text (id int NOT NULL, acl aclitem, body text, data bytea);
ALTER TABLE rows_50mb_as_text ALTER body SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL;
INSERT INTO rows_50mb_as_text SELECT id, NULL, body, data FROM rows_50mb WHERE id <= 4;
ALTER TABLE rows_50mb_as_text ADD PRIMARY KEY (id);
