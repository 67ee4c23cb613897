"""The frozen constants of HospitalSim, version 1.

They were fixed before any detector was trained on the data, from oracle figures and
single-column statistics alone, and are never moved to meet a target. A change of any
value here is a new ``VERSION``, and every result on the old version is redone.

Units: one step is one minute; "z" is a quantity in standard deviations of a stable
patient; rates are per minute.
"""

import numpy as np

VERSION = "1"

WINDOW = 20  # steps; a window's label is the label of its last step
BURN_IN = 128  # steps simulated before the first row, so that row 0 is stationary
BLOCK = 32  # units (patients or imaging devices) simulated by one compiled call
MAX_DEVICES = 4
PATIENT_STRIDE = 8  # entity = unit * PATIENT_STRIDE + device slot

DEPARTMENTS = ("icu", "emergency", "ward", "surgery", "cardiology", "neonatal")
DEVICE_TYPES = ("monitor", "pump", "ventilator", "wearable", "gateway", "imaging")
ROLES = ("nurse", "physician", "clerk")
ATTACK_NAMES = (
    "normal",
    "ddos",
    "recon",
    "spoofing",
    "ransomware",
    "snooping",
    "bulk_export",
    "backdated_note",
    "replay",
    "tampering",
)
IOT_ATTACKS = (1, 2, 3, 4)
EMR_ATTACKS = (5, 6, 7)
JOINT_ATTACKS = (8, 9)
SPOOFING, RANSOMWARE, REPLAY, TAMPERING = 3, 4, 8, 9
VISIBILITY = (0.40, 0.30, 0.30)  # of positives: in IoT alone, EMR alone, only both

# Hierarchy and non-IID structure
SIZE_EXPONENT = 1.2  # truncated Pareto law of patients per hospital
DIRICHLET = 0.3  # attack types within a visibility class; patients over departments
NO_IOT_SHARE = 0.20  # of hospitals
NO_EMR_SHARE = 0.10
LOSS_SHARE = 0.075  # of rows that lose IoT, and as many that lose EMR
LOSS_LENGTH = 5.0  # mean steps of one loss
DEVICE_COUNT_WEIGHTS = np.array([0.50, 0.30, 0.15, 0.05])  # 1 to 4 devices
EXTRA_DEVICE_WEIGHTS = np.array([0.0, 0.30, 0.15, 0.35, 0.20])  # slot 0 is a monitor
FEATURE_SCALE_SD = 0.15  # log scale of each IoT column of a hospital
FEATURE_SHIFT_SD = 0.30  # shift, in units of the column's scale
OTHER_UNIT_SHARE = 0.30  # of hospitals, for each column with a second unit
OTHER_CODING_SHARE = 0.30  # of hospitals that permute the code groups

# Patient latent: s' = A s + (I - A) shift + noise, A = Q diag(EIGENVALUES) Q
EIGENVALUES = np.array([0.97, 0.92, 0.88, 0.84])
ROTATION = 0.5 * np.array(
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float64
)
TRANSITION = ROTATION @ np.diag(EIGENVALUES) @ ROTATION
NOISE_ROOT = ROTATION @ np.diag(np.sqrt(1.0 - EIGENVALUES**2))  # stationary cov. = I
DETERIORATE_RATE = 0.003
RECOVER_RATE = 0.01
DETERIORATED_MEAN = np.array([1.0, -0.7, -0.6, 0.8])
DETERIORATED_NOISE = 1.25

# Charted vitals (z): offset of the patient + C s + noise, some with artefacts
VITALS = ("heart_rate", "spo2", "map", "resp_rate", "temperature")
_LOADINGS = np.array(
    [
        [0.90, 0.30, 0.20, 0.20],
        [-0.20, 0.90, -0.20, 0.30],
        [0.20, -0.30, 0.90, 0.20],
        [0.30, 0.20, -0.20, 0.90],
        [0.60, 0.10, -0.30, 0.50],
    ]
)
VITAL_LOADINGS = _LOADINGS / np.linalg.norm(_LOADINGS, axis=1, keepdims=True)
VITAL_CENTRE = np.array([82.0, 95.5, 84.0, 18.0, 37.0])
VITAL_SCALE = np.array([14.0, 1.8, 11.0, 4.0, 0.6])
OFFSET_SD = 0.4
VITAL_NOISE = 0.20
ARTEFACT_RATE = 0.005
ARTEFACT_SD = 2.5
VITAL_CHARTED = (2.2, 0.3)  # logit of "charted": intercept, slope on norm(s) - 1.9

# Labs and dose (z): L s + noise, seen when a state-dependent Poisson order falls due
LABS = (
    "lactate",
    "creatinine",
    "potassium",
    "wbc",
    "glucose",
    "haemoglobin",
    "infusion_dose",
)
LAB_LOADINGS = np.array(
    [
        [0.6, -0.4, -0.5, 0.3],
        [0.4, 0.1, -0.5, 0.1],
        [0.1, 0.5, -0.2, -0.3],
        [0.5, -0.1, 0.2, 0.5],
        [0.5, 0.3, 0.3, 0.2],
        [-0.2, 0.3, 0.5, -0.2],
        [0.5, -0.3, -0.6, 0.2],
    ]
)
LAB_NOISE = 0.5
LAB_CENTRE = np.array([1.4, 0.09, 4.1, 9.0, 6.5, 12.0, 5.0])
LAB_SCALE = np.array([0.6, 0.03, 0.5, 3.0, 1.8, 1.6, 2.0])
LAB_RATE = np.array([0.07, 0.09, 0.13, 0.19, 0.27, 0.36, 0.32])
LAB_STATE_SLOPE = 0.25  # log rate per unit of norm(s) - 1.9
NORM_CENTRE = 1.9
# column -> (factor, offset) of its second unit: Fahrenheit, mg/dL, umol/L, mg/dL, g/L
OTHER_UNITS = {
    "temperature": (1.8, 32.0),
    "lactate": (9.01, 0.0),
    "creatinine": (1000.0, 0.0),
    "glucose": (18.0, 0.0),
    "haemoglobin": (10.0, 0.0),
}

# Codes ~ Categorical(softmax(B_dept + D mean s)), s before admission to the record
CODES = 6
CODE_BIAS = np.array(
    [
        [1.0, 0.5, 0.0, 0.0, 0.3, -1.0],
        [0.5, 1.0, 0.2, 0.3, 0.0, -0.5],
        [0.0, 0.2, 1.0, 0.2, 0.2, -0.5],
        [-0.3, 0.3, 0.2, 1.2, 0.0, -1.0],
        [0.2, 0.0, 0.2, 0.0, 1.3, -1.0],
        [0.0, 0.0, -0.5, 0.2, 0.0, 1.5],
    ]
)
CODE_LOADINGS = 0.5 * np.array(
    [
        [1, -1, 0, 1],
        [1, 0, 1, 0],
        [0, 1, 0, -1],
        [-1, 0, 1, 0],
        [0, 0, -1, 1],
        [0, 1, 0, 0],
    ],
    np.float64,
)

# Access events: streams over event type x role x relation x shift
EVENTS = ("views", "orders", "notes", "modifications", "exports")
NOTE, EXPORT = 2, 4
EVENT_RATE = np.array([0.60, 0.15, 0.12, 0.10, 0.02])
EVENT_ROLE = np.array(
    [
        [0.60, 0.30, 0.10],
        [0.20, 0.78, 0.02],
        [0.55, 0.43, 0.02],
        [0.50, 0.40, 0.10],
        [0.10, 0.30, 0.60],
    ]
)
RELATION = np.array([0.93, 0.05, 0.02])  # treating, same department, other department
SHIFT = np.array([0.94, 0.06])  # on, off shift
ACCESS_ALPHA, ACCESS_BETA = 0.20, 0.50
ACCESS_RATE_SD = 0.2  # log factor of a department
EXPORT_LOG, EXPORT_SD, EXPORT_BULK = 1.5, 0.6, 3.0  # log records; added by an attack
NOTE_LOG, NOTE_SD, NOTE_BACKDATED = 2.0, 0.7, 3.0  # log minutes; added by an attack
# attack -> added rate, event type, roles, relations, shifts
ACCESS_ATTACKS = (
    (3.5, 0, (0.5, 0.2, 0.3), (0.0, 0.5, 0.5), (0.2, 0.8)),
    (3.5, EXPORT, (0.1, 0.1, 0.8), (0.5, 0.25, 0.25), (0.5, 0.5)),
    (3.5, NOTE, (0.4, 0.6, 0.0), (0.9, 0.1, 0.0), (0.7, 0.3)),
)
ACCESS = (
    *EVENTS,
    "by_nurse",
    "by_physician",
    "by_clerk",
    "untreated",
    "other_department",
    "off_shift",
    "export_log_records",
    "note_log_delay",
)
EMR_FEATURES = (*VITALS, *LABS, *(f"code_{i}" for i in range(CODES)), *ACCESS)

# IoT counts: negative binomial around a diurnal, coupled, self-exciting intensity
TRAFFIC_RATE = np.array([30.0, 12.0, 24.0, 10.0, 60.0, 40.0])
DIURNAL = 0.4
GAMMA = 0.12
HAWKES_ALPHA, HAWKES_BETA = 0.25, 0.50
DISPERSION = 8.0

# IoT features: x' = Phi_type x + W [log1p N - reference; s] + noise
IOT_FEATURES = (
    "log_bytes_in",
    "log_bytes_out",
    "log_packets_in",
    "log_packets_out",
    "jitter",
    "loss",
    "fan_out",
    "entropy",
    "retransmissions",
    "duplicates",
    "payload_heart_rate",
    "payload_spo2",
    "payload_map",
    "payload_resp_rate",
    "payload_variance",
    "writes",
)
PAYLOAD = slice(10, 14)
_PHI = np.array([0.5] * 4 + [0.4, 0.4, 0.6, 0.6, 0.4, 0.4] + [0.15] * 4 + [0.4, 0.4])
_PHI_TYPE = np.array([0.0, 0.05, 0.0, -0.05, -0.1, 0.1])[:, None]
PHI = _PHI + _PHI_TYPE * (np.arange(16) < 10)  # [types, 16], Phi_type is diagonal
W_COUNT = np.array([0.5, 0.5, 0.55, 0.55, 0.1, 0, 0.05, 0, 0.15, 0, 0, 0, 0, 0, 0, 0.1])
W_STATE = np.zeros((16, 4))
W_STATE[PAYLOAD] = 0.85 * VITAL_LOADINGS[:4]  # 1 - phi, so the payload follows C s
IOT_NOISE = np.array([0.25] * 4 + [0.4] * 6 + [0.15] * 4 + [0.4, 0.4])
PAYLOAD_NOISE_TYPE = np.array([1.0, 1.2, 1.0, 1.3, 1.1, 1.0])
_CENTRE = np.array(
    [9.0, 8.5, 3.5, 3.2, 4.0, 1.5, 2.5, 5.0, 2.0, 1.5, 0, 0, 0, 0, 2.0, 2.0]
)
_CENTRE_TYPE = np.array([0.0, -0.8, 0.3, -1.0, 1.0, 2.0])[:, None]
IOT_CENTRE = _CENTRE + _CENTRE_TYPE * (np.arange(16) < 4)  # [types, 16]
IOT_SCALE = np.ones(16)
IOT_CENTRE[:, PAYLOAD] = VITAL_CENTRE[:4]
IOT_SCALE[PAYLOAD] = VITAL_SCALE[:4]

# Campaigns
TARGET_WEIGHTS = np.array([0.7, 0.2, 0.1])  # of 1, 2, 3 targets
TARGETS = len(TARGET_WEIGHTS)
LATERAL_DELAY = 120.0  # mean steps from one target to the next
DURATION_MEDIAN, DURATION_SIGMA, DURATION_RANGE = 30.0, 0.5, (8.0, 100.0)
LEAD_IN = 480  # steps of campaigns before the burn-in, for stationary targets
LARGEST_MAKE_UP = 1.15  # on the prevalence, for a hospital without positives
MIN_GAP = 12  # steps between two attacks on one unit
AMPLITUDE = (0.85, 1.25)
DORMANT = 0.03  # of attacked units: labelled, without any effect
DDOS_FACTOR = (5.0, 50.0)
RAMP = np.array([1, 2, 5, 2, 3, 2, 2, 2, 1, 1])  # steps to full strength, by attack
REPLAY_LAG = (40, 100, 2)  # candidates: first, end, stride
FORGED_BLEND = 0.6
BURST_START = 0.4  # of a ransomware attack: before it bytes creep, after it writes
# attack -> shift of the innovation in units of its noise, at full strength
IOT_SHIFT = np.zeros((len(ATTACK_NAMES), 16))
IOT_SHIFT[1, [4, 5, 8]] = 1.5, 1.8, 1.5
IOT_SHIFT[2, [6, 7]] = 3.2, 2.8
IOT_SHIFT[3, [4, 9, 14]] = 2.4, 2.8, 1.2
IOT_SHIFT[4, [1, 3]] = 3.2, 2.6
BURST_SHIFT = np.zeros(16)
BURST_SHIFT[[7, 15]] = 1.5, 3.5
