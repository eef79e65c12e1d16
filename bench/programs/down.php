<?php
// ?mib=N: so many MiB, in blocks of 64 KiB that say where they are.
$blocks = 16 * (int) $_GET['mib'];
header('Content-Type: application/octet-stream');
header('Content-Length: ' . $blocks * 65536);
$rest = str_repeat('0123456789abcde' . "\n", 4095);
for ($block = 0; $block < $blocks; $block++) {
    echo sprintf("%015d\n", $block), $rest;
}
