<?php
// How many bytes came; with ?check=1 their CRC-32, too.
$size = 0;
$body = fopen('php://input', 'rb');
$hash = isset($_GET['check']) ? hash_init('crc32b') : null;
while (($piece = fread($body, 1 << 20)) !== false && $piece !== '') {
    $size += strlen($piece);
    if ($hash) {
        hash_update($hash, $piece);
    }
}
echo $size, $hash ? ' ' . hash_final($hash) : '', "\n";
