SET app.tenant = 'zeta';
INSERT INTO tenants VALUES (1000, 'zeta');
VACUUM FULL articles;
INSERT INTO lies VALUES (-1, -1);
VACUUM FULL lies;
INSERT INTO bag VALUES (1, clock_timestamp() + interval '0.1 s');
DELETE FROM bag WHERE a = 0;
